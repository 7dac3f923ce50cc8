"""The train stage, top to bottom: data, model, dry run, training, evaluation, export.

What is done is not done again: an attempt that finds the manifest of this run returns it, one that finds a checkpoint
goes on from it, one that finds the base model's results does not ask it again.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_contract.evaluation import EvaluationSummary
from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TrainResult
from finetune_contract.run_config import RunConfig, Use
from finetune_contract.samples import Sample
from finetune_contract.spec import Lora, Method, Objective
from finetune_trainer.checkpoints.resume import restore
from finetune_trainer.data.dataset import fetch_data, read_prepared
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.compare import summarise
from finetune_trainer.evaluation.evaluate import measure_base, measure_tuned
from finetune_trainer.evaluation.forgetting import general_rows
from finetune_trainer.evaluation.judge import Judged, Pair, judge_pairs
from finetune_trainer.evaluation.measured import Measured
from finetune_trainer.fast.choice import fast_path
from finetune_trainer.fetch import fetch_model
from finetune_trainer.logs import log
from finetune_trainer.model.build import hold_trained, load_for_training, set_recomputation
from finetune_trainer.model.tokenizer import load_tokenizer
from finetune_trainer.outputs.adopt import adopted_run
from finetune_trainer.outputs.claim import claim_run
from finetune_trainer.outputs.export import Lineage, export
from finetune_trainer.outputs.publish import publish
from finetune_trainer.outputs.results import completed_run
from finetune_trainer.outputs.summary import Training
from finetune_trainer.parallel.distributed import FETCHING, stop_if_told, world
from finetune_trainer.parallel.watchdog import WATCHDOG
from finetune_trainer.parallel.zero import loading, one_batch_a_step, sharing_settings
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.preference.loop import PreferenceLoop
from finetune_trainer.preference.loss import Preference
from finetune_trainer.preference.mismatch import with_partners
from finetune_trainer.preference.reference import with_reference
from finetune_trainer.reporting.figures import GpuClock, gpus
from finetune_trainer.reporting.progress import Poster, Progress
from finetune_trainer.reporting.prometheus import MetricsServer, port_from_env
from finetune_trainer.run import Run
from finetune_trainer.storage import Store, open_store
from finetune_trainer.tracing import step
from finetune_trainer.training.arguments import loop_arguments
from finetune_trainer.training.dryrun import Plan, fit, largest_divisor, plans
from finetune_trainer.training.loop import Loop
from finetune_trainer.watchers import training_of, watch_over

_SAME = 1e-2
"""Two measurements of the same weights may differ by this share, on a GPU and in other batches."""


def run_train(config: RunConfig, env: Environment) -> tuple[TrainResult, str] | None:
    """Train, evaluate and export; return the result and the sha256 of manifest.json.

    None on other ranks than the first: their work ends with the evaluation.
    """
    store = open_store(config.spec.output.uri, Use.OUTPUT)
    if (done := world().from_first(lambda: adopted_run(config, store, work=env.work))) is not None:
        return done if world().first else None  # prepared in this pod: nothing was, and the job has ended by now
    if (done := world().from_first(lambda: completed_run(config, store))) is not None:
        log.info("this run is complete already: nothing to do")
        return publish(done, config, store, folder=env.work / "outputs") if world().first else None
    if world().first:
        claim_run(config, store)
    with step("gather data and model"):
        run = _gather(config, env, store)
    progress = Progress(Poster.from_env())
    metrics = MetricsServer(port_from_env(), lambda: progress.numbers, job=config.job.name)
    try:
        tuned = _tune(run, progress)
        if tuned is None:
            return None
        weights, lineage = tuned
        _free_memory()
        log.info("exporting to %s", config.run_uri)
        with step("export"):
            done = export(weights, run.tokenizer, lineage, base_folder=run.fetched.path, folder=run.folder, store=store)
        with step("publish"):
            return publish(done, config, store, folder=run.folder / "outputs")
    finally:
        metrics.close()
        progress.close()


def _gather(config: RunConfig, env: Environment, store: Store) -> Run:
    clock = GpuClock(gpus=gpus())
    prepared = read_prepared(config, store)
    folder = env.work / "train"
    with world().one_a_node():
        if not world().local_rank:
            shutil.rmtree(folder, ignore_errors=True)  # an earlier container's
            folder.mkdir(parents=True)
        data = fetch_data(config, prepared, store, folder=folder / "data")
        fetched = fetch_model(config, env, weights=True)
    if config.spec.objective is Objective.KTO:
        data = with_partners(data)
    tokenizer = load_tokenizer(fetched.path, config.spec.model.new_tokens)
    # The user's text may change meanwhile; the ranks share the same rows.
    data = replace(data, general=world().from_first(lambda: general_rows(config, tokenizer)))
    return Run(config, prepared, store, folder, data, fetched, tokenizer, clock)


def _tune(run: Run, progress: Progress) -> tuple[Path, Lineage] | None:
    """Train and evaluate; return the folder of the tuned weights. The model is gone from memory then.

    None on other ranks than the first.
    """
    with step("load, dry run, measure the base model"):
        loop, base = _get_ready(run)
    with step("steps"):
        training, samples = _train(run, loop, progress)
    with step("measure the tuned model"):
        tuned = _evaluate(run, loop, training)
    weights = run.folder / "tuned"
    loop.save_result(weights)
    loop.stop_engine()
    if not world().first:
        return None
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


def _held_in_fp8(run: Run, model: Any) -> str | None:
    """Have the model hold its frozen base in FP8, if the job asks for it; return what that does to its loss."""
    if not run.config.spec.in_fp8:
        return None
    from finetune_trainer.training.fp8_base import use_fp8  # it loads the fast path, which not every run takes

    return use_fp8(model, run.data.validation, prepared=run.prepared)


def _get_ready(run: Run) -> tuple[Loop, Measured]:
    """Load the model, find the micro-batch that fits, and ask the base model while the weights are still its own."""
    log.info("loading %s for %s", run.config.spec.model.uri, run.config.spec.method)
    resolved, early_stopping = run.prepared.resolved, run.config.spec.evaluation.early_stopping
    wanted = Plan(_wanted_micro_batch(run), resolved.gradient_checkpointing)
    sharing = sharing_settings(run.config, resolved, micro_batch=wanted.micro_batch)
    # What is quantised is shared out once it is loaded (`quantised.share_quantised`).
    with loading(None if run.config.spec.method is Method.QLORA else sharing):
        model = load_for_training(run.config, resolved, run.fetched.path, run.tokenizer)
    frozen_base = _held_in_fp8(run, model)
    preference = _preference(run)
    kind = partial(PreferenceLoop, preference=preference) if preference else Loop
    share = resolved.batch_size // world().size
    fast = fast_path(model, run.config.spec, resolved, run.data.train, work=run.folder.parent)
    if fast and sharing:
        sharing = one_batch_a_step(sharing, share=share)

    def make(plan: Plan) -> Loop:
        micro_batch, recompute = plan.micro_batch, plan.recompute and fast is None
        set_recomputation(model, on=recompute)
        if fast:  # cuts a step itself, and recomputes itself
            fast.recompute = plan.recompute
        arguments = loop_arguments(
            run.config,
            resolved.model_copy(update={"gradient_checkpointing": recompute}),
            micro_batch=share if fast else micro_batch,
            folder=run.folder / "loop",
            sharing=sharing,
        )
        loop = kind(
            model=model,
            tokenizer=run.tokenizer,
            data=run.data,
            prepared=run.prepared,
            arguments=arguments,
            flatten=resolved.packing and micro_batch > 1,
            patience=early_stopping.patience if early_stopping else None,
            second_rate=(run.config.spec.lora or Lora()).lora_plus_ratio or 1.0,
            fast=fast,
            micro_batch=micro_batch,
        )
        if not sharing:
            hold_trained(model)  # TRL holds a quantised model's adapters in bfloat16
        return loop

    log.info("dry run of the longest micro-batch")
    free = run.config.spec.hyperparameters.gradient_checkpointing is None
    others = plans(wanted, batch_size=share, free=free)
    # An engine is made once: where its plan does not fit, the next attempt has a smaller micro-batch.
    loop = fit(make, [wanted] if sharing else others)
    loop.frozen_base = frozen_base
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


def _preference(run: Run) -> Preference | None:
    objective, beta = run.config.spec.objective, run.prepared.resolved.beta
    return None if objective is Objective.SFT or beta is None else Preference(objective, beta)


def _wanted_micro_batch(run: Run) -> int:
    resolved, asked = run.prepared.resolved, run.config.spec.hyperparameters.micro_batch_size
    # After memory ran out, the operator asks for less than what was resolved.
    wanted = min(resolved.micro_batch_size, asked or resolved.micro_batch_size)
    return largest_divisor(resolved.batch_size // world().size, at_most=wanted) or 1


def _train(run: Run, loop: Loop, progress: Progress) -> tuple[Training, tuple[Sample, ...]]:
    """Train from the newest checkpoint, or from the start, to the last step; the best weights are in the model then."""
    restored = restore(run.folder / "restored", config=run.config, prepared=run.prepared, store=run.store)
    resumed_from = restored.step if restored else None
    watchers = watch_over(run, loop, progress, resumed_from=resumed_from)
    try:
        with PREEMPTION.deferred():
            PREEMPTION.check()
            loop.run(restored.folder if restored else None)
            watchers.uploader.wait()
            world().barrier(limit=FETCHING)  # the checkpoint is safe before a rank ends
    finally:
        WATCHDOG.stop()
        watchers.close()
        progress.update(checkpointStep=watchers.uploader.stored_step)
    PREEMPTION.check()
    if loop.stopped_early:
        log.info("stopped early at step %d: %s", loop.state.global_step, loop.stopped_early)
    loop.load_best()
    return training_of(loop, watchers.report, resumed_from=resumed_from), watchers.samples.samples


def _evaluate(run: Run, loop: Loop, training: Training) -> Measured:
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
        loss = loop.measure(safe_point=stop_if_told)["eval_loss"]
    if loss is not None and expected is not None and abs(loss - expected) > _SAME * max(expected, 1.0):
        raise TrainerError(
            ExitCode.INTERNAL_ERROR,
            f"The best weights give a held-out loss of {loss:.4f}, measured as {expected:.4f} in training.",
        )
    return tuned


def _judge(run: Run, base: Measured, tuned: Measured) -> Judged | None:
    judge = run.config.spec.evaluation.judge
    if judge is None or not tuned.answers:
        return None
    pairs = [Pair(*each) for each in zip(run.data.questions, base.answers, tuned.answers, strict=False)]
    return judge_pairs(pairs[: judge.max_examples], config=run.config, store=run.store)


def _compare(run: Run, base: Measured, tuned: Measured, *, judged: Judged | None) -> EvaluationSummary:
    summary = summarise(base, tuned, gates=run.config.spec.evaluation.gates, judged=judged)
    for found in summary.comparisons:
        log.info("%s: %+g [%+g, %+g]: %s", found.metric, found.change, found.low, found.high, found.verdict)
    return summary


def _free_memory() -> None:
    gc.collect()  # the loop's parts refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
