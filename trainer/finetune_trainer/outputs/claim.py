"""A run's folder belongs to one run of one job: `owner.json` says whose it is, and is written only if absent.

Two jobs with the same output.uri would otherwise mix their files; the second one is told before it has done anything.
"""

from __future__ import annotations

import json

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import RunConfig
from finetune_trainer.errors import AlreadyExistsError, NotFoundError, TrainerError
from finetune_trainer.storage import Store


def claim_run(config: RunConfig, store: Store) -> None:
    """Make the run's folder this job's. Raises OUTPUT_EXISTS if it is another's."""
    _must_be_ours(_uid_in(store, paths.join(config.run_uri, paths.MANIFEST), "jobUid"), config)
    owner = {"uid": config.job.uid, "namespace": config.job.namespace, "name": config.job.name, "run": config.job.run}
    uri = paths.join(config.run_uri, paths.OWNER)
    try:
        store.write(uri, json.dumps(owner).encode(), only_if_absent=True)
    except AlreadyExistsError:
        # An earlier attempt, or this write itself, repeated after its answer was lost.
        _must_be_ours(_uid_in(store, uri, "uid"), config)


def _uid_in(store: Store, uri: str, field: str) -> str | None:
    try:
        value = json.loads(store.read(uri))
    except NotFoundError:
        return None
    except ValueError:
        return ""
    return str(value.get(field, "")) if isinstance(value, dict) else ""


def _must_be_ours(uid: str | None, config: RunConfig) -> None:
    if uid not in (None, config.job.uid):
        raise TrainerError(
            ExitCode.OUTPUT_EXISTS,
            f"{config.run_uri} already belongs to another job (uid {uid or 'unknown'}): choose another output.uri, or "
            "delete that folder if its results are not needed.",
        )
