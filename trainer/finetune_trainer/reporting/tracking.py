"""Trackers: MLflow, W&B and TensorBoard, each through transformers' own callback, and none that could cost the run.

A tracker works in a thread of its own, on copies of what the loop says. What it raises is warned about once, what it
does not take in time is left behind: training never waits for it. All attempts of a run are one run there: MLflow's is
found by a tag, W&B's has an id made of the job's. Files (TensorBoard's, W&B's when offline) are whole in the last
attempt, which repeats what those before it logged, and are kept with the outputs.
"""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Full, Queue
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune_contract import paths
from finetune_contract.run_config import RunConfig, Use
from finetune_contract.tracking_spec import Mlflow, Wandb
from finetune_trainer.logs import log

CLOSE = 20.0
"""Seconds at the end in which a tracker may take what still waits."""
_QUEUE = 10_000
_TAG = "finetune.run"
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "WANDB_API_KEY")

Work = Callable[[], None]


class Tracker(TrainerCallback):  # type: ignore[misc]  # untyped
    """One tracker behind a queue.

    `make` gives transformers' callback; `end`, called last, is told whether training came to its end; `replays` has a
    later attempt repeat what those before it logged.
    """

    left_behind = False
    """Whether one did not end in time: its thread may still wait for a server when the process ends."""

    def __init__(
        self, name: str, make: Callable[[], Any], *, end: Callable[[bool], None] | None = None, replays: bool = False
    ) -> None:
        self._name, self._make, self._end, self._replays = name, make, end, replays
        self._callback: Any = None
        self._complained = self._ended = False
        self._queue: Queue[Work | None] = Queue(maxsize=_QUEUE)
        self._thread = threading.Thread(target=self._work, name=f"tracking-{name}", daemon=True)
        self._thread.start()

    def on_train_begin(
        self, args: Any, state: TrainerState, control: TrainerControl, *, model: Any = None, **_: Any
    ) -> None:
        """Open the run."""
        self._tell("on_train_begin", args, state, control, model=model)
        for entry in state.log_history if self._replays else ():
            logs = {name: value for name, value in entry.items() if name not in ("step", "epoch")}
            self._tell("on_log", args, _at(state, entry["step"]), control, model=model, logs=logs)

    def on_log(
        self,
        args: Any,
        state: TrainerState,
        control: TrainerControl,
        *,
        logs: dict[str, float],
        model: Any = None,
        **_: Any,
    ) -> None:
        """Log a step or a measurement."""
        self._tell("on_log", args, state, control, model=model, logs=dict(logs))

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the run."""
        self._ended = True
        self._tell("on_train_end", args, state, control)

    def close(self) -> None:
        """Let what waits be taken, for so long."""
        if end := self._end:
            self._put(lambda: end(self._ended))
        self._put(None)
        self._thread.join(timeout=CLOSE)
        if self._thread.is_alive():
            Tracker.left_behind = True
            self._complain(f"it did not take everything within {CLOSE:.0f} s")

    def _tell(self, event: str, args: Any, state: TrainerState, control: TrainerControl, **rest: Any) -> None:
        now = copy.copy(state)  # the loop goes on with its own
        self._put(lambda: getattr(self._made(), event)(args, now, control, **rest))

    def _put(self, work: Work | None) -> None:
        try:
            self._queue.put_nowait(work)
        except Full:
            self._complain("it does not keep up")

    def _made(self) -> Any:
        if self._callback is None:
            self._callback = self._make()
        return self._callback

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:  # whatever a tracker raises, the run is worth more
                self._complain(f"{type(error).__name__}: {error}")

    def _complain(self, why: str) -> None:
        if not self._complained:
            log.warning("%s: %s; training goes on, later troubles with it are not repeated", self._name, why[:500])
        self._complained = True


def trackers(config: RunConfig, *, folder: Path) -> list[Tracker]:
    """Return the spec's trackers; those that write files do so below the folder, each in one of its own."""
    wanted = config.spec.tracking
    if wanted is None or os.environ.get("RANK", "0") != "0":
        return []
    for name in _CREDENTIALS:
        if value := os.environ.get(f"{Use.TRACKING.value}{name}"):
            os.environ[name] = value
    found = []
    if wanted.mlflow:
        found.append(_mlflow(config, wanted.mlflow))
    if wanted.wandb:
        found.append(_wandb(config, wanted.wandb, folder / paths.WANDB))
    if wanted.tensorboard:
        found.append(_tensorboard(folder / paths.TENSORBOARD))
    return found


def _mlflow(config: RunConfig, settings: Mlflow) -> Tracker:
    identity = f"{config.job.uid}-{config.job.run}"
    tags = {
        _TAG: identity,
        "finetune.job": f"{config.job.namespace}/{config.job.name}",
        "finetune.method": str(config.spec.method),
        "finetune.model": config.spec.model.uri,
        "finetune.dataset": config.spec.dataset.uri,
    }
    experiment = settings.experiment or config.job.name
    os.environ |= {
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "MLFLOW_FLATTEN_PARAMS": "TRUE",
        "MLFLOW_TAGS": json.dumps(tags),
    }

    def make() -> Any:
        from transformers.integrations import MLflowCallback

        if known := _known_mlflow_run(experiment, identity):
            os.environ["MLFLOW_RUN_ID"] = known
        return MLflowCallback()

    def end(trained: bool) -> None:
        import mlflow

        if not trained and mlflow.active_run():
            mlflow.flush_async_logging()
            mlflow.end_run("FAILED")

    return Tracker("MLflow", make, end=end)


def _known_mlflow_run(experiment: str, identity: str) -> str | None:
    """Return the run that an earlier attempt has opened."""
    import mlflow

    mlflow.set_tracking_uri(os.environ["MLFLOW_TRACKING_URI"])
    found = mlflow.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = mlflow.MlflowClient().search_runs([found.experiment_id], f"tags.`{_TAG}` = '{identity}'", max_results=1)
    return str(runs[0].info.run_id) if runs else None


def _wandb(config: RunConfig, settings: Wandb, folder: Path) -> Tracker:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "WANDB_PROJECT": settings.project,
        "WANDB_MODE": settings.mode,
        "WANDB_RUN_ID": f"{config.job.uid}-{config.job.run}",
        "WANDB_RESUME": "allow",
        "WANDB_DIR": str(folder.parent),  # it adds wandb/
        **({"WANDB_ENTITY": settings.entity} if settings.entity else {}),
    }

    def make() -> Any:
        from transformers.integrations import WandbCallback

        return WandbCallback()

    def end(trained: bool) -> None:
        import wandb

        wandb.finish(exit_code=0 if trained else 1)

    return Tracker("W&B", make, end=end, replays=settings.mode == "offline")


def _tensorboard(folder: Path) -> Tracker:
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)

    def make() -> Any:
        from transformers.integrations import TensorBoardCallback

        return TensorBoardCallback()

    return Tracker("TensorBoard", make, replays=True)


def _at(state: TrainerState, step: int) -> TrainerState:
    earlier = copy.copy(state)
    earlier.global_step = step
    return earlier
