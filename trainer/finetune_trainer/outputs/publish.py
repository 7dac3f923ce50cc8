"""The results on the Hugging Face hub as well, once they are complete in storage.

The run has succeeded by then: whatever the hub says is a warning. `hub.json` in storage says that it is done, so that
what an attempt left undone is taken up, and nothing is pushed twice. Files that the repository has are not sent again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import Manifest, Pushed, TrainResult
from finetune_contract.output_spec import Hub
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.logs import log
from finetune_trainer.storage import Store
from finetune_trainer.storage.hub import DEFAULT_ENDPOINT, patiently

Done = tuple[TrainResult, str]


def publish(done: Done, config: RunConfig, store: Store, *, folder: Path) -> Done:
    """Push a complete run's outputs if that is asked for; return the result with the commit, or with a warning."""
    hub, (result, sha256) = config.spec.output.hub, done
    if hub is None:
        return done
    try:
        pushed = pushed_before(config, store) or _push(hub, config, store, folder=folder)
    except Exception as error:  # the outputs are safe: nothing that goes wrong here may cost them
        if isinstance(error, TrainerError) and error.code is ExitCode.PREEMPTED:
            raise
        warning = f"output.hub: not pushed to {hub.repo}: {_reason(error)}"
        log.warning("%s", warning)
        return result.model_copy(update={"warnings": (*result.warnings, warning)}), sha256
    return result.model_copy(update={"hub": pushed}), sha256


def pushed_before(config: RunConfig, store: Store) -> Pushed | None:
    """Return what this run has pushed to the hub, by its hub.json; None if nothing, or to another repository."""
    try:
        pushed = Pushed.model_validate_json(store.read(paths.join(config.run_uri, paths.HUB)))
    except (NotFoundError, ValidationError):
        return None
    return pushed if config.spec.output.hub and pushed.repo == config.spec.output.hub.repo else None


def _push(hub: Hub, config: RunConfig, store: Store, *, folder: Path) -> Pushed:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    manifest = Manifest.model_validate_json(store.read(paths.join(config.run_uri, paths.MANIFEST)))
    _complete(folder, manifest, config, store)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT, token=_token())
    log.info("pushing %d files to %s", len(manifest.files), hub.repo)
    patiently(lambda: api.create_repo(hub.repo, private=hub.private, exist_ok=True))
    operations = [CommitOperationAdd(there, folder / path) for path, there in _places(manifest)]
    message = f"{config.job.namespace}/{config.job.name}, run {config.job.run}"
    commit: Any = patiently(lambda: api.create_commit(hub.repo, operations, commit_message=message))
    pushed = Pushed(repo=hub.repo, commit=str(commit.oid))
    store.write(paths.join(config.run_uri, paths.HUB), pushed.to_json().encode())
    return pushed


def _complete(folder: Path, manifest: Manifest, config: RunConfig, store: Store) -> None:
    """Fetch what this machine does not have: another attempt's outputs."""
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            store.download(paths.join(config.run_uri, file.path), path)
    store.download(paths.join(config.run_uri, paths.MANIFEST), folder / paths.MANIFEST)


def _places(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield each file and its place in the repository: the model to load lies at the top, as the hub expects it."""
    main = paths.MERGED if paths.MERGED in manifest.artifacts else paths.ADAPTER
    for file in manifest.files:
        path = PurePosixPath(file.path)
        yield file.path, str(path.relative_to(main)) if path.is_relative_to(main) else file.path
    yield paths.MANIFEST, paths.MANIFEST


def _token() -> str | None:
    """Return the push's own token, else the output's, else the plain one."""
    names = (f"{Use.HUB}HF_TOKEN", f"{Use.OUTPUT}HF_TOKEN", "HF_TOKEN")
    return next((token for name in names if (token := os.environ.get(name))), None)


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    match status:
        case 401 | 403:
            wanted = "HF_TOKEN in the Secret of output.hub.secretRef must be able to write"
            return f"the hub refused the token ({status}): {wanted}."
        case None:
            return f"the hub could not be used ({type(error).__name__}). The outputs are complete in output.uri."
        case _:
            return f"the hub answered {status}. The outputs are complete in output.uri."
