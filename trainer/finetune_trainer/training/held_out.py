"""The held-out loss over a run: when it no longer falls, and when it rises while the training loss goes on falling.

Both are read from the loop's log, which travels with every checkpoint, so that a resumed run decides as an undisturbed
one would. The rules are Prechelt's (1998, "Early Stopping - But When?"): stop after so many measurements in a row that
are no better than the best, and speak of overfitting by the generalisation loss, the rise above the lowest held-out
loss in per cent, while training itself still makes progress.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

RISE = 0.01
"""Share by which a loss has to rise or fall to count: less is the noise of batches."""
_MEASUREMENTS = 2
"""Measurements above the lowest one before overfitting is spoken of: one alone may be chance."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One held-out loss, and the mean training loss of the steps since the measurement before."""

    step: int
    held_out: float
    training: float | None


@dataclass(frozen=True, slots=True)
class Overfitting:
    """Held-out loss up, training loss down."""

    since: Measurement
    now: Measurement

    def __str__(self) -> str:
        """Say it for a log, a report and a status."""
        return (
            f"Overfitting since step {self.since.step}: up to step {self.now.step} the held-out loss rose from "
            f"{self.since.held_out:.4g} to {self.now.held_out:.4g}, the training loss fell from "
            f"{self.since.training:.4g} to {self.now.training:.4g}. The weights of step {self.since.step} are kept; "
            "fewer epochs or more data help."
        )


def measurements(history: Sequence[dict[str, Any]]) -> list[Measurement]:
    """Return the measurements in a trainer's log (`TrainerState.log_history`), oldest first."""
    found: list[Measurement] = []
    since: list[float] = []
    for entry in history:
        if "eval_loss" in entry:
            found.append(Measurement(entry["step"], entry["eval_loss"], fmean(since) if since else None))
            since = []
        elif "loss" in entry:
            since.append(entry["loss"])
    return found


def stop_reason(history: Sequence[dict[str, Any]], *, patience: int | None) -> str | None:
    """Return why the run ends here, or None: `patience` measurements in a row are no better than the best."""
    found = measurements(history)
    if patience is None or not found:
        return None
    best = min(found, key=lambda one: one.held_out)
    later = sum(one.step > best.step for one in found)
    if later < patience:
        return None
    return (
        f"The held-out loss has not fallen below {best.held_out:.4g}, that of step {best.step}, in {later} "
        f"measurement{'s' if later > 1 else ''} (evaluation.earlyStopping.patience)."
    )


def overfitting(history: Sequence[dict[str, Any]]) -> Overfitting | None:
    """Return whether the run overfits as it stands: the newest measurement against the lowest."""
    found = measurements(history)
    if not found:
        return None
    best, now = min(found, key=lambda one: one.held_out), found[-1]
    later = sum(one.step > best.step for one in found)
    if later < _MEASUREMENTS or best.training is None or now.training is None:
        return None
    rises = now.held_out > best.held_out * (1 + RISE)
    falls = now.training < best.training * (1 - RISE)
    return Overfitting(best, now) if rises and falls else None
