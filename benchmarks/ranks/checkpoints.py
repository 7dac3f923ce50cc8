"""What checkpoints cost, and that they hold what they should: stored in the middle of a run on all GPUs, gone on with
on half of them, with the same losses; and the weights that the run ends with are whole.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from benchmarks.ranks.cases import LEARNED, RESUME, Case, Scale
from benchmarks.ranks.meter import is_first, leave, say
from benchmarks.ranks.ours import checkpoint_of, ready

TOLERANCE = 5e-3
"""Losses of the same steps on other numbers of GPUs: bfloat16, and sums in another order."""


class CheckpointMeter(TrainerCallback):  # type: ignore[misc]  # untyped
    """Notes when steps were logged, and how long a checkpoint keeps the GPUs waiting and takes to be safe."""

    def __init__(self, loop: Any) -> None:
        """Watch a loop."""
        self._loop, self._logged = loop, 0.0
        self.began: float | None = None
        self.found: dict[str, float] = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Note that all is restored."""
        self.began = time.monotonic()

    def on_log(self, *_: Any, **__: Any) -> None:
        """Note the end of a step, or of a measurement after it."""
        self._logged = time.monotonic()

    def on_save(self, *_: Any, **__: Any) -> None:
        """Wait for the checkpoint, which training would not do."""
        waited = time.monotonic() - self._logged
        self._loop.uploader.wait()
        self.found |= {"blocked_s": round(waited, 2), "stored_s": round(time.monotonic() - self._logged, 2)}


def measure_checkpoint(case: Case, scale: Scale, *, folder: Path) -> None:
    """Train to the end, or from the other run's checkpoint to the end; print the figures."""
    from finetune_trainer import train
    from finetune_trainer.parallel.distributed import world
    from finetune_trainer.reporting.progress import Poster, Progress

    run, loop, _ = ready(case, scale, folder=folder)
    meter = CheckpointMeter(loop)
    loop.add_callback(meter)
    started = time.monotonic()
    training, _ = train._train(run, loop, Progress(Poster.from_env()))
    result = folder / "result"
    saving = time.monotonic()
    loop.save_result(result)
    world().barrier()
    saved = time.monotonic() - saving
    if is_first():
        losses = {point.step: point.value for point in training.losses}
        found: dict[str, Any] = {
            **meter.found,
            "checkpoint_gb": _size(folder / "out" / "run-1" / "checkpoints"),
            "save_result_s": round(saved, 2),
            "losses": [round(loss, 5) for loss in losses.values()],
            "resumed_from_step": training.resumed_from_step,
            "shape": scale.checkpoint_shape,
        }
        if case.kind == RESUME and meter.began is not None:
            found |= {"resume_s": round(meter.began - started, 2), **_compared(folder, losses)}
        else:
            (folder / "losses.json").write_text(json.dumps(losses))
            found["tensors_verified"] = verified(checkpoint_of(folder, LEARNED), result)
        say(found)
    leave()


def _compared(folder: Path, losses: dict[int, float]) -> dict[str, Any]:
    """Return how far the losses are from the undisturbed run's."""
    expected = {
        int(step): loss for step, loss in json.loads((folder.with_name("stored") / "losses.json").read_text()).items()
    }
    apart = max(abs(loss - expected[step]) for step, loss in losses.items())
    steps = [step for step in losses if step > LEARNED // 2]
    return {"losses_apart": round(apart, 6), "same_losses": apart <= TOLERANCE and len(steps) == LEARNED // 2}


def verified(checkpoint: Path, result: Path) -> int:
    """Return how many tensors of the result were found to be those of the checkpoint. Raises ValueError otherwise."""
    import torch

    stored, saved = _weights(checkpoint), _tensors(result)
    missing = saved.keys() ^ stored.keys()
    if missing or not saved:
        raise ValueError(f"{len(missing)} tensors are not on both sides: {sorted(missing)[:3]}")
    for name, tensor in saved.items():
        if not torch.equal(stored[name].to(tensor.dtype), tensor):
            raise ValueError(f"{name} is not that of the checkpoint")
    return len(saved)


def _weights(checkpoint: Path) -> dict[str, Any]:
    """Return a checkpoint's weights: with ZeRO in float32, beside their moments."""
    found = _tensors(checkpoint)
    shared = {name.removeprefix("weights."): one for name, one in found.items() if name.startswith("weights.")}
    return shared or found


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def _size(folder: Path) -> float:
    newest = max(folder.glob("attempt-*/step-*"), key=lambda one: one.stat().st_mtime)
    return round(sum(path.stat().st_size for path in newest.rglob("*") if path.is_file()) / 1e9, 3)
