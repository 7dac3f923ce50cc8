"""What goes along with the steps of a run: callbacks in the order in which they see a step, and what they found.

All ranks check and ask the same things at the same steps; the first one alone stores, tracks and reports.
"""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.checkpoints.checkpoint import CheckpointUploader
from finetune_trainer.checkpoints.resume_check import identity
from finetune_trainer.outputs.export import TRACKING
from finetune_trainer.outputs.summary import Training, curve, trained_tokens
from finetune_trainer.parallel.distributed import world
from finetune_trainer.preference.loop import ACCURACY, MARGIN
from finetune_trainer.reporting.figures import efficiency
from finetune_trainer.reporting.progress import Progress
from finetune_trainer.reporting.tracking import Tracker, trackers
from finetune_trainer.run import Run
from finetune_trainer.training.callbacks import Report, SaveCheckpoints, StayTogether, StopOnDivergence, StopOnNonFinite
from finetune_trainer.training.held_out import overfitting
from finetune_trainer.training.loop import Loop
from finetune_trainer.training.samples import KeepSamples, SampleFile, prompts_to_ask


@dataclass(frozen=True, slots=True)
class Watchers:
    """What has to be closed after the steps."""

    uploader: CheckpointUploader
    samples: SampleFile
    trackers: list[Tracker]
    report: Report

    def close(self) -> None:
        """Let what they have under way end."""
        self.samples.close()
        self.uploader.close()
        for tracker in self.trackers:
            tracker.close()


def watch_over(run: Run, loop: Loop, progress: Progress, *, resumed_from: int | None) -> Watchers:
    """Add the loop's callbacks, in the order in which they see a step."""
    config, resolved, settings = run.config, run.prepared.resolved, run.config.spec.evaluation
    uploader = CheckpointUploader(config=config, store=run.store, identity=identity(config, run.prepared))
    samples = SampleFile(config=config, store=run.store, resumed_from=resumed_from)
    asked = prompts_to_ask(settings, run.data, run.tokenizer)
    report = Report(
        progress,
        uploader=uploader,
        resumed_from=resumed_from,
        gpu_clock=run.gpu_clock,
        efficiency=efficiency(config, run.prepared, run.fetched.path),
    )
    tracking = trackers(config, folder=run.folder / TRACKING) if world().first else []
    watchers = Watchers(uploader, samples, tracking, report)
    loop.uploader, loop.gpu_clock = uploader, run.gpu_clock
    every_steps, every_minutes = resolved.checkpoint_every_steps, config.spec.checkpoint.every_minutes
    for callback in (
        StayTogether(),
        StopOnNonFinite(),
        StopOnDivergence(),
        KeepSamples(asked, file=samples, tokenizer=run.tokenizer, settings=settings, resolved=resolved),
        SaveCheckpoints(every_steps=every_steps, every_minutes=every_minutes, uploader=uploader),
        *watchers.trackers,
        *([report] if world().first else []),
    ):
        loop.add_callback(callback)
    return watchers


def training_of(loop: Loop, report: Report, *, resumed_from: int | None) -> Training:
    """Return what a training was, from the loop's log."""
    history = loop.state.log_history
    losses, speed = curve(history, "loss"), report.clock.mean_tokens_per_second()
    return Training(
        steps=loop.state.global_step,
        loss=losses[-1].value if losses else None,
        best_step=loop.best.step if loop.best else None,
        best_loss=loop.best.loss if loop.best else None,
        resumed_from_step=resumed_from,
        checkpoint_step=loop.uploader.stored_step if loop.uploader else None,
        micro_batch_size=loop.micro_batch,
        gradient_checkpointing=loop.recomputes,
        computed_by=f"fast path: {loop.fast.summary}" if loop.fast else None,
        frozen_base=loop.frozen_base,
        trained_tokens=trained_tokens(history),
        tokens_per_second=speed,
        mfu=report.mfu(speed),
        gpu_seconds=loop.gpu_clock.seconds() if loop.gpu_clock else None,
        stopped_early=loop.stopped_early,
        warnings=(str(found),) if (found := overfitting(history)) else (),
        losses=losses,
        held_out_losses=curve(history, "eval_loss"),
        held_out_accuracies=curve(history, f"eval_{ACCURACY}"),
        held_out_margins=curve(history, f"eval_{MARGIN}"),
    )
