"""The collect stage: say again what a complete run produced, from its manifest, without a GPU.

For a Job that completed and whose pod went before the operator read its message (job-traps 5).
"""

from __future__ import annotations

from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TrainResult
from finetune_contract.run_config import RunConfig, Use
from finetune_trainer.errors import TrainerError
from finetune_trainer.outputs.results import completed_run
from finetune_trainer.storage import open_store


def run_collect(config: RunConfig) -> tuple[TrainResult, str]:
    """Return the run's result and the sha256 of its manifest. Raises RESULT_MISSING."""
    done = completed_run(config, open_store(config.spec.output.uri, Use.OUTPUT))
    if done is None:
        raise TrainerError(
            ExitCode.RESULT_MISSING, f"No manifest of this run at {config.run_uri}: it is trained again."
        )
    return done
