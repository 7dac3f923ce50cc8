"""The train stage, top to bottom: data, model, dry run, training, evaluation, export.

What is done is not done again: an attempt that finds the manifest of this run returns it, one that finds a checkpoint
goes on from it, one that finds the base model's results does not ask it again.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_contract.evaluation import EvaluationSummary
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TrainResult
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig, Use
from finetune_contract.samples import Sample
from finetune_contract.spec import Lora, Objective
from finetune_trainer.callbacks import Report, SaveCheckpoints, StopOnDivergence, StopOnNonFinite
from finetune_trainer.checkpoint import CheckpointUploader
from finetune_trainer.claim import claim_run
from finetune_trainer.dataset import Data, fetch_data, read_prepared
from finetune_trainer.dryrun import Plan, fit, largest_divisor, plans
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import measure_base, measure_tuned
from finetune_trainer.evaluation.compare import summarise
from finetune_trainer.evaluation.forgetting import general_rows
from finetune_trainer.evaluation.judge import Judged, Pair, judge_pairs
from finetune_trainer.evaluation.measured import Measured
from finetune_trainer.export import TRACKING, Lineage, export
from finetune_trainer.fetch import FetchedModel, fetch_model
from finetune_trainer.figures import GpuClock, efficiency, gpus
from finetune_trainer.held_out import overfitting
from finetune_trainer.logs import log
from finetune_trainer.loop import Loop, loop_arguments
from finetune_trainer.model import load_for_training, save_result, set_recomputation, trained_in_float32
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.preference import Preference
from finetune_trainer.preference_loop import ACCURACY, MARGIN, PreferenceLoop
from finetune_trainer.progress import Poster, Progress
from finetune_trainer.prometheus import MetricsServer, port_from_env
from finetune_trainer.publish import publish
from finetune_trainer.reference import with_reference
from finetune_trainer.results import completed_run
from finetune_trainer.resume import identity, restore
from finetune_trainer.samples import KeepSamples, SampleFile, prompts_to_ask
from finetune_trainer.storage import Store, open_store
from finetune_trainer.summary import Training, curve, trained_tokens
from finetune_trainer.tokenizer import load_tokenizer
from finetune_trainer.tracking import Tracker, trackers

_SAME = 1e-2
"""Two measurements of the same weights may differ by this share, on a GPU and in other batches."""


@dataclass(frozen=True, slots=True)
class _Run:
    """What every step of the stage needs."""

    config: RunConfig
    prepared: Prepared
    store: Store
    folder: Path
    data: Data
    fetched: FetchedModel
    tokenizer: Any
    gpu_clock: GpuClock


@dataclass(frozen=True, slots=True)
class _Watchers:
    """What goes along with the steps, and has to be closed after them."""

    uploader: CheckpointUploader
    samples: SampleFile
    trackers: list[Tracker]
    report: Report

    def close(self) -> None:
        self.samples.close()
        self.uploader.close()
        for tracker in self.trackers:
            tracker.close()


def run_train(config: RunConfig, env: Environment) -> tuple[TrainResult, str]:
    """Train, evaluate and export; return the result and the sha256 of manifest.json."""
    store = open_store(config.spec.output.uri, Use.OUTPUT)
    if (done := completed_run(config, store)) is not None:
        log.info("this run is complete already: nothing to do")
        return publish(done, config, store, folder=env.work / "outputs")
    claim_run(config, store)
    run = _gather(config, env, store)
    progress = Progress(Poster.from_env())
    metrics = MetricsServer(port_from_env(), lambda: progress.numbers, job=config.job.name)
    try:
        weights, lineage = _tune(run, progress)
        _free_memory()
        log.info("exporting to %s", config.run_uri)
        done = export(weights, run.tokenizer, lineage, base_folder=run.fetched.path, folder=run.folder, store=store)
        return publish(done, config, store, folder=run.folder / "outputs")
    finally:
        metrics.close()
        progress.close()


def _gather(config: RunConfig, env: Environment, store: Store) -> _Run:
    clock = GpuClock(gpus=gpus())
    prepared = read_prepared(config, store)
    folder = env.work / "train"
    shutil.rmtree(folder, ignore_errors=True)  # an earlier container's
    folder.mkdir(parents=True)
    data = fetch_data(config, prepared, store, folder=folder / "data")
    fetched = fetch_model(config, env, weights=True)
    tokenizer = load_tokenizer(fetched.path, config.spec.model.new_tokens)
    data = replace(data, general=general_rows(config, tokenizer))
    return _Run(config, prepared, store, folder, data, fetched, tokenizer, clock)


def _tune(run: _Run, progress: Progress) -> tuple[Path, Lineage]:
    """Train and evaluate; return the folder of the tuned weights. The model is gone from memory then."""
    loop, base = _get_ready(run)
    training, samples = _train(run, loop, progress)
    tuned = _evaluate(run, loop, training)
    weights = run.folder / "tuned"
    save_result(loop.model, weights)
    judged = _judge(run, base, tuned)
    lineage = Lineage(
        config=run.config,
        prepared=run.prepared,
        revision=run.fetched.revision,
        training=training,
        base=base,
        tuned=tuned,
        summary=_compare(run, base, tuned, judged=judged),
        questions=tuple(run.data.questions),
        samples=samples,
        verdicts=judged.verdicts if judged else (),
    )
    return weights, lineage


def _get_ready(run: _Run) -> tuple[Loop, Measured]:
    """Load the model, find the micro-batch that fits, and ask the base model while the weights are still its own."""
    log.info("loading %s for %s", run.config.spec.model.uri, run.config.spec.method)
    model = load_for_training(run.config, run.prepared.resolved, run.fetched.path, run.tokenizer)
    resolved, early_stopping = run.prepared.resolved, run.config.spec.evaluation.early_stopping
    preference = _preference(run)
    kind = partial(PreferenceLoop, preference=preference) if preference else Loop

    def make(plan: Plan) -> Loop:
        micro_batch, chosen = plan.micro_batch, resolved.model_copy(update={"gradient_checkpointing": plan.recompute})
        set_recomputation(model, on=plan.recompute)
        arguments = loop_arguments(run.config, chosen, micro_batch=micro_batch, folder=run.folder / "loop")
        loop = kind(
            model=model,
            tokenizer=run.tokenizer,
            data=run.data,
            prepared=run.prepared,
            arguments=arguments,
            flatten=resolved.packing and micro_batch > 1,
            patience=early_stopping.patience if early_stopping else None,
            second_rate=(run.config.spec.lora or Lora()).lora_plus_ratio or 1.0,
        )
        trained_in_float32(model)  # TRL holds a quantised model's adapters in bfloat16
        return loop

    log.info("dry run of the longest micro-batch")
    wanted = Plan(_wanted_micro_batch(run), resolved.gradient_checkpointing)
    free = run.config.spec.hyperparameters.gradient_checkpointing is None
    loop = fit(make, plans(wanted, batch_size=resolved.batch_size, free=free))
    if isinstance(loop, PreferenceLoop) and preference and preference.needs_reference:
        loop.compare_with(
            with_reference(loop.model, run.data, prepared=run.prepared, config=run.config, store=run.store)
        )
    if not run.config.spec.evaluation.compare_with_base:
        return loop, Measured()
    base = measure_base(
        loop.model, run.tokenizer, data=run.data, prepared=run.prepared, config=run.config, store=run.store
    )
    return loop, base


def _preference(run: _Run) -> Preference | None:
    objective, beta = run.config.spec.objective, run.prepared.resolved.beta
    return None if objective is Objective.SFT or beta is None else Preference(objective, beta)


def _wanted_micro_batch(run: _Run) -> int:
    resolved, asked = run.prepared.resolved, run.config.spec.hyperparameters.micro_batch_size
    # After memory ran out, the operator asks for less than what was resolved.
    wanted = min(resolved.micro_batch_size, asked or resolved.micro_batch_size)
    return largest_divisor(resolved.batch_size, at_most=wanted) or 1


def _train(run: _Run, loop: Loop, progress: Progress) -> tuple[Training, tuple[Sample, ...]]:
    """Train from the newest checkpoint, or from the start, to the last step; the best weights are in the model then."""
    restored = restore(run.folder / "restored", config=run.config, prepared=run.prepared, store=run.store)
    resumed_from = restored.step if restored else None
    watchers = _watch_over(run, loop, progress, resumed_from=resumed_from)
    try:
        with PREEMPTION.deferred():
            PREEMPTION.check()
            loop.run(restored.folder if restored else None)
            watchers.uploader.wait()
    finally:
        watchers.close()
        progress.update(checkpointStep=watchers.uploader.stored_step)
    PREEMPTION.check()
    if loop.stopped_early:
        log.info("stopped early at step %d: %s", loop.state.global_step, loop.stopped_early)
    loop.load_best()
    return _training(loop, watchers.report, resumed_from=resumed_from), watchers.samples.samples


def _watch_over(run: _Run, loop: Loop, progress: Progress, *, resumed_from: int | None) -> _Watchers:
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
    watchers = _Watchers(uploader, samples, trackers(config, folder=run.folder / TRACKING), report)
    loop.uploader, loop.gpu_clock = uploader, run.gpu_clock
    every_steps, every_minutes = resolved.checkpoint_every_steps, config.spec.checkpoint.every_minutes
    for callback in (
        StopOnNonFinite(),
        StopOnDivergence(),
        KeepSamples(asked, file=samples, tokenizer=run.tokenizer, settings=settings, resolved=resolved),
        SaveCheckpoints(every_steps=every_steps, every_minutes=every_minutes, uploader=uploader),
        *watchers.trackers,
        report,
    ):
        loop.add_callback(callback)
    return watchers


def _training(loop: Loop, report: Report, *, resumed_from: int | None) -> Training:
    history = loop.state.log_history
    losses, speed = curve(history, "loss"), report.clock.mean_tokens_per_second()
    return Training(
        steps=loop.state.global_step,
        loss=losses[-1].value if losses else None,
        best_step=loop.best.step if loop.best else None,
        best_loss=loop.best.loss if loop.best else None,
        resumed_from_step=resumed_from,
        checkpoint_step=loop.uploader.stored_step if loop.uploader else None,
        micro_batch_size=loop.args.per_device_train_batch_size,
        gradient_checkpointing=bool(loop.args.gradient_checkpointing),
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


def _evaluate(run: _Run, loop: Loop, training: Training) -> Measured:
    # A resume may find other best weights, but none with the same loss to the last digit at the same step.
    best = training.best_loss
    weights = f"step {training.best_step} of {training.steps}, held-out loss {best!r}" if best is not None else None
    tuned = measure_tuned(
        loop.model,
        run.tokenizer,
        data=run.data,
        prepared=run.prepared,
        config=run.config,
        store=run.store,
        weights=weights,
    )
    loss, expected = tuned.scores.loss, training.best_loss
    if isinstance(loop, PreferenceLoop):  # its loss is not that of the answers
        loss = loop.measure(safe_point=PREEMPTION.check)["eval_loss"]
    if loss is not None and expected is not None and abs(loss - expected) > _SAME * max(expected, 1.0):
        raise TrainerError(
            ExitCode.INTERNAL_ERROR,
            f"The best weights give a held-out loss of {loss:.4f}, measured as {expected:.4f} in training.",
        )
    return tuned


def _judge(run: _Run, base: Measured, tuned: Measured) -> Judged | None:
    judge = run.config.spec.evaluation.judge
    if judge is None or not tuned.answers:
        return None
    pairs = [Pair(*each) for each in zip(run.data.questions, base.answers, tuned.answers, strict=False)]
    return judge_pairs(pairs[: judge.max_examples], config=run.config, store=run.store)


def _compare(run: _Run, base: Measured, tuned: Measured, *, judged: Judged | None) -> EvaluationSummary:
    summary = summarise(base, tuned, gates=run.config.spec.evaluation.gates, judged=judged)
    for found in summary.comparisons:
        log.info("%s: %+g [%+g, %+g]: %s", found.metric, found.change, found.low, found.high, found.verdict)
    return summary


def _free_memory() -> None:
    gc.collect()  # the loop's parts refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
