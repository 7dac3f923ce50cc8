"""The train stage, top to bottom: data, model, dry run, training, evaluation, export.

What is done is not done again: an attempt that finds the manifest of this run returns it, one that finds a checkpoint
goes on from it, one that finds the base model's results does not ask it again.
"""

from __future__ import annotations

import gc
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from finetune_contract.exit_codes import ExitCode
from finetune_contract.outcome import TrainResult
from finetune_contract.prepared import Prepared
from finetune_contract.run_config import RunConfig, Use
from finetune_contract.samples import Sample
from finetune_contract.spec import Lora, Objective
from finetune_trainer.callbacks import Report, SaveCheckpoints, StayTogether, StopOnDivergence, StopOnNonFinite
from finetune_trainer.checkpoint import CheckpointUploader, Place, restore, restore_newest
from finetune_trainer.claim import claim_run
from finetune_trainer.dataset import Data, fetch_data, read_prepared
from finetune_trainer.distributed import FETCHING, world
from finetune_trainer.dryrun import Plan, fit, largest_divisor, plans
from finetune_trainer.environment import Environment
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluate import Measured, measure, measure_base
from finetune_trainer.export import Lineage, export
from finetune_trainer.fetch import FetchedModel, fetch_model
from finetune_trainer.held_out import overfitting
from finetune_trainer.logs import log
from finetune_trainer.loop import Loop, loop_arguments
from finetune_trainer.model import load_for_training, save_result, set_recomputation, trained_in_float32
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.preference import Preference
from finetune_trainer.preference_loop import ACCURACY, MARGIN, PreferenceLoop
from finetune_trainer.progress import Poster, Progress
from finetune_trainer.reference import with_reference
from finetune_trainer.results import completed_run
from finetune_trainer.samples import KeepSamples, SampleFile, prompts_to_ask
from finetune_trainer.storage import Store, open_store
from finetune_trainer.summary import Training, curve
from finetune_trainer.tokenizer import load_tokenizer
from finetune_trainer.watchdog import WATCHDOG

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


def run_train(config: RunConfig, env: Environment) -> tuple[TrainResult, str] | None:
    """Train, evaluate and export; return the result and the sha256 of manifest.json.

    None on other ranks than the first: their work ends with the evaluation.
    """
    store = open_store(config.spec.output.uri, Use.OUTPUT)
    if (done := world().from_first(lambda: completed_run(config, store))) is not None:
        log.info("this run is complete already: nothing to do")
        return done
    if world().size > 1 and config.spec.objective is not Objective.SFT:
        raise TrainerError(ExitCode.CONFIG_INVALID, f"Objective {config.spec.objective} trains in one process.")
    if world().first:
        claim_run(config, store)
    run = _gather(config, env, store)
    progress = Progress(Poster.from_env())
    try:
        weights, lineage = _tune(run, progress)
        if not world().first:
            return None
        _free_memory()
        log.info("exporting to %s", config.run_uri)
        return export(weights, run.tokenizer, lineage, base_folder=run.fetched.path, folder=run.folder, store=store)
    finally:
        progress.close()


def _gather(config: RunConfig, env: Environment, store: Store) -> _Run:
    prepared = read_prepared(config, store)
    folder = env.work / "train"
    with world().one_a_node():
        if not world().local_rank:
            shutil.rmtree(folder, ignore_errors=True)  # an earlier container's
            folder.mkdir(parents=True)
        data = fetch_data(config, prepared, store, folder=folder / "data")
        fetched = fetch_model(config, env, weights=True)
    return _Run(
        config, prepared, store, folder, data, fetched, load_tokenizer(fetched.path, config.spec.model.new_tokens)
    )


def _tune(run: _Run, progress: Progress) -> tuple[Path, Lineage]:
    """Train and evaluate; return the folder of the tuned weights. The model is gone from memory then."""
    loop, base = _get_ready(run)
    training, samples = _train(run, loop, progress)
    tuned = _evaluate(run, loop, training)
    weights = run.folder / "tuned"
    if world().first:
        save_result(loop.model, weights)
    lineage = Lineage(
        config=run.config,
        prepared=run.prepared,
        revision=run.fetched.revision,
        training=training,
        base=base,
        tuned=tuned,
        questions=tuple(run.data.questions),
        samples=samples,
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
    loop = fit(make, plans(wanted, batch_size=resolved.batch_size // world().size, free=free))
    if isinstance(loop, PreferenceLoop) and preference and preference.needs_reference:
        loop.compare_with(
            with_reference(loop.model, run.data, prepared=run.prepared, config=run.config, store=run.store)
        )
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
    return largest_divisor(resolved.batch_size // world().size, at_most=wanted) or 1


def _train(run: _Run, loop: Loop, progress: Progress) -> tuple[Training, tuple[Sample, ...]]:
    """Train from the newest checkpoint, or from the start, to the last step; the best weights are in the model then."""
    restored = run.folder / "restored"
    place = _restore(run, restored)
    resumed_from = place.step if place else None
    if place:
        log.info("going on from the checkpoint of attempt %d, step %d", place.attempt, place.step)
    uploader = CheckpointUploader(config=run.config, store=run.store)
    loop.uploader = uploader
    samples = SampleFile(config=run.config, store=run.store, resumed_from=resumed_from)
    loop.add_callback(StayTogether())
    loop.add_callback(StopOnNonFinite())
    loop.add_callback(StopOnDivergence())
    loop.add_callback(_samples_callback(run, samples))
    loop.add_callback(
        SaveCheckpoints(
            every_steps=run.prepared.resolved.checkpoint_every_steps,
            every_minutes=run.config.spec.checkpoint.every_minutes,
            uploader=uploader,
        )
    )
    if world().first:
        loop.add_callback(Report(progress, uploader=uploader, resumed_from=resumed_from))
    try:
        with PREEMPTION.deferred():
            PREEMPTION.check()
            loop.run(restored if place else None)
            uploader.wait()
            world().barrier(limit=FETCHING)  # the checkpoint is safe before a rank ends
    finally:
        WATCHDOG.stop()
        samples.close()
        uploader.close()
        progress.update(checkpointStep=uploader.stored_step)
    PREEMPTION.check()
    if loop.stopped_early:
        log.info("stopped early at step %d: %s", loop.state.global_step, loop.stopped_early)
    loop.load_best()
    return _training(loop, resumed_from=resumed_from), samples.samples


def _restore(run: _Run, folder: Path) -> Place | None:
    """Fetch the checkpoint that the first rank takes, once on each node."""
    place = restore_newest(folder, config=run.config, store=run.store) if world().first else None
    place = world().from_first(lambda: place)
    with world().one_a_node():
        if place and not folder.is_dir():
            restore(folder, place, config=run.config, store=run.store)
    return place


def _samples_callback(run: _Run, file: SampleFile) -> KeepSamples:
    settings = run.config.spec.evaluation
    asked = prompts_to_ask(settings, run.data, run.tokenizer)
    return KeepSamples(asked, file=file, tokenizer=run.tokenizer, settings=settings, resolved=run.prepared.resolved)


def _training(loop: Loop, *, resumed_from: int | None) -> Training:
    history = loop.state.log_history
    losses = curve(history, "loss")
    return Training(
        steps=loop.state.global_step,
        loss=losses[-1].value if losses else None,
        best_step=loop.best.step if loop.best else None,
        best_loss=loop.best.loss if loop.best else None,
        resumed_from_step=resumed_from,
        checkpoint_step=loop.uploader.stored_step if loop.uploader else None,
        micro_batch_size=loop.args.per_device_train_batch_size,
        gradient_checkpointing=bool(loop.args.gradient_checkpointing),
        stopped_early=loop.stopped_early,
        warnings=(str(found),) if (found := overfitting(history)) else (),
        losses=losses,
        held_out_losses=curve(history, "eval_loss"),
        held_out_accuracies=curve(history, f"eval_{ACCURACY}"),
        held_out_margins=curve(history, f"eval_{MARGIN}"),
    )


def _evaluate(run: _Run, loop: Loop, training: Training) -> Measured:
    log.info("evaluating the tuned model on %d held-out examples", len(run.data.validation))
    tuned = measure(loop.model, run.tokenizer, data=run.data, prepared=run.prepared, config=run.config)
    loss, expected = tuned.scores.loss, training.best_loss
    if isinstance(loop, PreferenceLoop):  # its loss is not that of the answers
        loss = loop.measure(safe_point=PREEMPTION.check)["eval_loss"]
    if loss is not None and expected is not None and abs(loss - expected) > _SAME * max(expected, 1.0):
        raise TrainerError(
            ExitCode.INTERNAL_ERROR,
            f"The best weights give a held-out loss of {loss:.4f}, measured as {expected:.4f} in training.",
        )
    return tuned


def _free_memory() -> None:
    gc.collect()  # the loop's parts refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
