"""What happens between two steps: checks, checkpoints, and reports to log and operator."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.checkpoints.checkpoint import CheckpointUploader
from finetune_trainer.environment import collective_timeout
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import log
from finetune_trainer.outputs.summary import trained_tokens
from finetune_trainer.parallel.distributed import told_to_stop, world
from finetune_trainer.parallel.watchdog import WATCHDOG
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.reporting.figures import Efficiency, GpuClock
from finetune_trainer.reporting.progress import Progress, StepClock
from finetune_trainer.training.divergence import RECENT, GradientPulse, LossLevel
from finetune_trainer.training.held_out import overfitting
from finetune_trainer.training.loop import require_finite

clock = time.monotonic
_SLACK = 30.0
"""Seconds beyond the limit of a collective, whose own error says more."""
LINE_EVERY = 5.0
"""Seconds between two progress lines in a log."""


class StayTogether(TrainerCallback):  # type: ignore[misc]  # untyped
    """Lets a signal to one process count for all of the run, from the same step on; it comes before all others.

    And ends a process that waits for another one in vain.
    """

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Watch from here on, if there are several processes."""
        if world().size > 1:
            WATCHDOG.start(limit=collective_timeout() + _SLACK)

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        """Note that a micro-batch was computed."""
        WATCHDOG.alive()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Ask the other processes, if there are any."""
        told_to_stop()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Watch no longer."""
        WATCHDOG.stop()


class StopOnNonFinite(TrainerCallback):  # type: ignore[misc]
    """Ends the run at the first loss or gradient that is not finite, before a checkpoint of it is written."""

    def on_log(
        self, _args: Any, state: TrainerState, _control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Look at what the step has logged."""
        for name, what in (("loss", "loss"), ("grad_norm", "gradients' norm")):
            if name in logs:
                require_finite(logs[name], f"{what} at step {state.global_step}")


class StopOnDivergence(TrainerCallback):  # type: ignore[misc]
    """Ends the run when its loss shot up or its gradients died, and keeps checkpoints of that out of storage."""

    def __init__(self) -> None:
        self._level, self._pulse = LossLevel(), GradientPulse()
        self._put_off = False

    def on_train_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Take up what earlier attempts have logged."""
        for entry in state.log_history:
            self._observe(entry)

    def on_log(
        self, _args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Look at what the step has logged; the checkpoint that it may be due for comes after this."""
        self._observe(logs)
        if self._level.diverged:
            raise TrainerError(ExitCode.LOSS_DIVERGED, _diverged(self._level, state.global_step))
        if self._pulse.stopped:
            raise TrainerError(ExitCode.GRADIENTS_VANISHED, _vanished(self._pulse, state.global_step))
        if "loss" in logs and not PREEMPTION.requested and state.global_step < state.max_steps:
            self._put_off_saving(control)

    def _observe(self, entry: dict[str, float]) -> None:
        if "loss" in entry:
            self._level.observe(entry["loss"])
            if "grad_norm" in entry:
                self._pulse.observe(entry["grad_norm"], loss=entry["loss"])

    def _put_off_saving(self, control: TrainerControl) -> None:
        wrong = self._level.suspicious or self._pulse.dead_steps > 0
        due = control.should_save or self._put_off
        control.should_save, self._put_off = due and not wrong, due and wrong


class SaveCheckpoints(TrainerCallback):  # type: ignore[misc]
    """Says when a checkpoint is due: every so many steps or minutes, and when the run is told to stop."""

    def __init__(self, *, every_steps: int | None, every_minutes: int | None, uploader: CheckpointUploader) -> None:
        self._every_steps, self._every_minutes, self._uploader = every_steps, every_minutes, uploader
        self._last = clock()

    def on_train_begin(self, _args: Any, _state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Count the minutes from here."""
        self._last = clock()

    def on_step_end(self, _args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask for a checkpoint, and for the measurement of the last step."""
        self._uploader.check()
        last = state.global_step >= state.max_steps
        control.should_evaluate |= last
        # After the last step the results are written; a checkpoint lets evaluation and export be repeated alone.
        control.should_save |= last or self._due(state)
        if PREEMPTION.requested:
            # The measurement can wait for the next attempt; the checkpoint cannot.
            control.should_evaluate = False
            control.should_save = control.should_training_stop = True

    def on_save(self, _args: Any, _state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Count the minutes from here, whatever the checkpoint was due for."""
        self._last = clock()

    def _due(self, state: TrainerState) -> bool:
        steps, minutes = self._every_steps, self._every_minutes
        by_steps = steps is not None and state.global_step % steps == 0
        # Clocks differ: the first rank's counts.
        return by_steps or (minutes is not None and world().any(world().first and clock() - self._last >= 60 * minutes))


class Report(TrainerCallback):  # type: ignore[misc]
    """Tells the operator, and the log or terminal, how far the run is."""

    def __init__(
        self,
        progress: Progress,
        *,
        uploader: CheckpointUploader,
        resumed_from: int | None,
        gpu_clock: GpuClock | None = None,
        efficiency: Efficiency | None = None,
    ) -> None:
        self._progress, self._uploader = progress, uploader
        self._gpu_clock, self._efficiency = gpu_clock, efficiency
        self.clock = StepClock()
        self._display: _Bar | _Lines = _Bar() if sys.stderr.isatty() else _Lines()
        self._resumed_from = resumed_from
        self._overfitting_since: int | None = None

    def on_train_begin(self, _args: Any, state: TrainerState, _control: TrainerControl, **_: Any) -> None:
        """Say where the run starts."""
        self.clock.step_ended(state.global_step, tokens=trained_tokens(state.log_history) or 0)
        self._progress.update(step=state.global_step, totalSteps=state.max_steps, resumedFromStep=self._resumed_from)

    def on_log(
        self, _args: Any, state: TrainerState, _control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Report a step or a measurement."""
        if "eval_loss" in logs:
            self._progress.update(evalLoss=logs["eval_loss"])
            self._display.note(f"step {state.global_step}: held-out loss {logs['eval_loss']:.4f}")
            self._warn_of_overfitting(state)
        elif "loss" in logs:
            self._report_step(state, logs)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Leave the terminal as it was."""
        self._display.close()

    def mfu(self, tokens_per_second: float | None) -> float | None:
        """Return the share of the GPUs' peak; None where model or card are not known."""
        if self._efficiency is None or tokens_per_second is None:
            return None
        return self._efficiency.mfu(tokens_per_second)

    def _warn_of_overfitting(self, state: TrainerState) -> None:
        found = overfitting(state.log_history)
        if found and found.since.step != self._overfitting_since:
            self._overfitting_since = found.since.step
            self._progress.update(overfittingSinceStep=found.since.step)
            log.warning("%s", found)

    def _report_step(self, state: TrainerState, logs: dict[str, float]) -> None:
        self.clock.step_ended(state.global_step, tokens=int(logs.get("num_tokens", 0)))
        seconds = self.clock.seconds_a_step()
        remaining = None if seconds is None else seconds * (state.max_steps - state.global_step)
        speed = self.clock.tokens_per_second()
        self._progress.update(
            remaining_seconds=remaining,
            step=state.global_step,
            totalSteps=state.max_steps,
            epoch=state.epoch,
            loss=logs["loss"],
            learningRate=logs.get("learning_rate"),
            gradNorm=logs.get("grad_norm"),
            tokensPerSecond=speed,
            mfu=self.mfu(speed),
            trainedTokens=logs.get("num_tokens"),
            gpuSeconds=self._gpu_clock.seconds() if self._gpu_clock else None,
            checkpointStep=self._uploader.stored_step,
        )
        self._display.step(state, loss=logs["loss"], tokens_per_second=speed, remaining=remaining)


def _diverged(level: LossLevel, step: int) -> str:
    return (
        f"The loss shot up: in {level.steps_above} of the last {RECENT} steps, up to step {step}, it was above "
        f"{level.limit:.4g}, where it had come down to {level.level:.4g}. Lower hyperparameters.learningRate or raise "
        "hyperparameters.warmupRatio. Checkpoints from before stay in storage."
    )


def _vanished(pulse: GradientPulse, step: int) -> str:
    return (
        f"The gradients were zero for {pulse.dead_steps} steps in a row, up to step {step}: nothing is learned. Look "
        "at which tokens are trained on (the first example in the log) and at lora.targetModules."
    )


class _Lines:
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self._last = 0.0

    def step(
        self, state: TrainerState, *, loss: float, tokens_per_second: float | None, remaining: float | None
    ) -> None:
        now = time.monotonic()
        if now - self._last < LINE_EVERY and state.global_step < state.max_steps:
            return
        self._last = now
        speed = f", {tokens_per_second:,.0f} tokens/s" if tokens_per_second else ""
        left = f", {remaining:,.0f} s left" if remaining else ""
        log.info("step %d/%d: loss %.4f%s%s", state.global_step, state.max_steps, loss, speed, left)

    def note(self, text: str) -> None:
        log.info("%s", text)

    def close(self) -> None:
        """Nothing to leave."""


class _Bar:
    """A bar, for terminals."""

    def __init__(self) -> None:
        self._bar: Any = None

    def step(
        self, state: TrainerState, *, loss: float, tokens_per_second: float | None, remaining: float | None
    ) -> None:
        from tqdm import tqdm

        del remaining  # the bar has its own
        if self._bar is None:
            self._bar = tqdm(total=state.max_steps, initial=state.global_step - 1, unit="step", leave=True)
        speed = f"{tokens_per_second:,.0f}" if tokens_per_second else "-"
        self._bar.set_postfix_str(f"loss {loss:.4f}, {speed} tokens/s", refresh=False)
        self._bar.update(state.global_step - self._bar.n)

    def note(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
