"""`python -m finetune_trainer <stage>`: one stage of one attempt, as a container of the operator's Jobs runs it.

Exits with a code of `finetune_contract.exit_codes`. Only the stage that runs is imported: `prepare` never loads torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_contract.run_config import RunConfig
    from finetune_trainer.environment import Environment

# Set before anything imports a library that reads them at import time.
LIBRARY_DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    # Our own poster speaks this protocol; transformers' callback would speak beside it.
    "DISABLE_KUBEFLOW_INTEGRATION": "TRUE",
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # Trackers: neither minutes of retries nor words on standard output, and no git, which the image does not have.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "TRUE",
    "GIT_PYTHON_REFRESH": "quiet",
    "WANDB_SILENT": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_DISABLE_CODE": "true",
}

# What computes nothing. Their tokenizer library imports torch wherever it finds it: 500 MB and seconds for nothing.
_WITHOUT_TORCH = ("prepare", "check")


def main(arguments: list[str] | None = None) -> int:
    """Run the stage that the command line names; return its exit code."""
    options = _parser().parse_args(arguments)
    for name, value in LIBRARY_DEFAULTS.items():
        os.environ.setdefault(name, value)

    from finetune_trainer.preemption import PREEMPTION

    with PREEMPTION.deferred():
        # A signal that comes while modules load is remembered, and the stage stops at its start.
        PREEMPTION.install()
        from finetune_trainer.environment import Environment, end_rank, is_rank
        from finetune_trainer.parallel.launch import launch
        from finetune_trainer.stage import run_stage
        from finetune_trainer.unused import hide, unused

        if options.stage in _WITHOUT_TORCH:
            hide("torch")
            os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would say that torch was not found
        env = Environment.from_env()
        if options.config:
            env = dataclasses.replace(env, config=options.config)
        config = _train_config(env) if options.stage == "train" else None
        hide(*(unused(config) if config else ()))
        several = config is not None and config.device.ranks > 1 and not is_rank()
        if not several and not is_rank():
            # One process trains on one GPU; transformers would copy the model to all that it sees.
            os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    if config and several and not PREEMPTION.requested:
        return launch(config, env, log_level=options.log_level)
    code = run_stage(options.stage, env, log_level=options.log_level)
    PREEMPTION.finish()
    if is_rank():
        end_rank(code)
    _leave_stuck_trackers(code)
    return code


def _train_config(env: Environment) -> RunConfig | None:
    """Return the run configuration; what is wrong with it the stage says."""
    from finetune_trainer.errors import TrainerError
    from finetune_trainer.stage import load_config

    try:
        return load_config(env.config)
    except TrainerError:
        return None


def _leave_stuck_trackers(code: int) -> None:
    """End at once where a tracker hangs: its library would wait for its server when the process ends."""
    tracking = sys.modules.get("finetune_trainer.reporting.tracking")
    if tracking is not None and tracking.Tracker.left_behind:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer", description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=("prepare", "fetch", "train", "collect", "check"), help="what to do")
    parser.add_argument("--config", type=Path, help="the run configuration (default: $FINETUNE_CONFIG)")
    parser.add_argument(
        "--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), default="INFO", type=str.upper
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
