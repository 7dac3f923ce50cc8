"""The prepare stage: everything that can be known before a GPU is busy.

It claims the run's folder, reads the model's configuration and tokenizer, checks the data, splits, tokenises, chooses
what the user left open, estimates memory and stores the shards, `prepared.json` last. A job that cannot work ends here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.fitting import ResolveError
from finetune_contract.outcome import OutputFile, PrepareResult
from finetune_contract.prepared import DatasetSummary, Prepared, Resolved, Shard
from finetune_contract.resolve import (
    Choice,
    DataFacts,
    choose,
    choose_loss,
    resolve,
)
from finetune_contract.run_config import RunConfig, Use
from finetune_contract.shape import ModelShape
from finetune_contract.would_fit import what_would_fit
from finetune_trainer.base_model import BaseModel, read_base_model
from finetune_trainer.claim import claim_run
from finetune_trainer.cpu import multiplies_bfloat16
from finetune_trainer.data.advice import warnings
from finetune_trainer.data.held_out import HeldOut
from finetune_trainer.data.lengths import Lengths, measure
from finetune_trainer.data.observe import counts, observe
from finetune_trainer.data.parts import Part, data_parts, digest_of_parts, revisions_of_parts
from finetune_trainer.data.plan import Plan, choose_plan
from finetune_trainer.data.second_pass import Tokenised, tokenise
from finetune_trainer.data.shards import Cut, LocalShard, write_shards
from finetune_trainer.data.survey import Survey, survey
from finetune_trainer.data.tokenize import Encoder, padding_token
from finetune_trainer.deepspeed_config import own_config
from finetune_trainer.environment import Environment
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.evaluation.forgetting import is_measured, paragraphs
from finetune_trainer.evaluation.metrics import check_metrics, scorers
from finetune_trainer.logs import log
from finetune_trainer.resume_check import check_resume
from finetune_trainer.storage import Store, open_store
from finetune_trainer.storage.folders import upload_folder

HELD_OUT = "held-out.jsonl"
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Data:
    """The data after both passes."""

    parts: list[Part]
    survey: Survey
    plan: Plan
    tokens: Tokenised
    lengths: Lengths
    stop_ids: list[int]


@dataclass(frozen=True, slots=True)
class Shards:
    """The cut data."""

    train: Cut
    validation: Cut
    local: list[LocalShard]


def run_prepare(config: RunConfig, env: Environment) -> tuple[PrepareResult, str]:
    """Prepare a run; return what was found and the sha256 of prepared.json."""
    # The tokenizers library uses all cores unless a fork scares it off; prepare forks nothing after this.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    store = open_store(config.run_uri, Use.OUTPUT)
    claim_run(config, store)
    if done := _done_before(config, store):
        log.info("prepared before: %s", paths.join(config.run_uri, paths.PREPARED))
        return done
    env.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=env.work, prefix="prepare-") as scratch:
        prepared = _prepare(config, env, store=store, scratch=Path(scratch))
    content = prepared.to_json().encode()
    store.write(paths.join(config.run_uri, paths.PREPARED), content)
    return _result(prepared), hashlib.sha256(content).hexdigest()


def _prepare(config: RunConfig, env: Environment, *, store: Store, scratch: Path) -> Prepared:
    spec = config.spec
    # A JSON Schema that is none and a text that is not there are known here, not with a GPU waiting.
    scorers(spec.evaluation)
    if is_measured(config):
        paragraphs(spec.evaluation.forgetting)
    with _settings_are_the_users():
        model = _read_model(config, env)
        data = _read_data(config, model, scratch)
        check_metrics(spec.evaluation, data.survey.format)
        facts = DataFacts(data.survey.format, data.lengths.longest, data.lengths.most, data.lengths.mean)
        choice = choose(
            spec,
            device=config.device,
            facts=facts,
            shape=model.shape,
            limit=model.limit,
            fast_bfloat16=multiplies_bfloat16(),
        )
        _must_fit(config, choice, model.shape)
        shards = _cut(data, choice, scratch)
        resolved = resolve(
            spec,
            choice,
            train_examples=shards.train.rows,
            model_revision=model.revision,
            dataset_revision=revisions_of_parts(data.parts),
            dataset_sha256=digest_of_parts(data.parts),
        )
    own_config(spec, resolved)  # one that contradicts the job is known here
    stored = _store(config, store, scratch)
    prepared = Prepared(
        job_uid=config.job.uid,
        config_hash=config.config_hash,
        dataset=_summary(config, data=data, shards=shards, resolved=resolved, model=model),
        estimate=choice.estimate,
        resolved=resolved,
        pad_token_id=padding_token(model.tokenizer),
        shards=tuple(_shard(shard, stored[shard.name]) for shard in shards.local),
        held_out=paths.join(paths.PREPARED_DIR, HELD_OUT),
        first_example=data.tokens.first_example,
        token_histogram=data.lengths.histogram,
        label_histogram=data.survey.checks.labels,
    )
    check_resume(config, prepared, store)
    return prepared


def _done_before(config: RunConfig, store: Store) -> tuple[PrepareResult, str] | None:
    """Return an earlier attempt's result, if it was for the same settings."""
    try:
        content = store.read(paths.join(config.run_uri, paths.PREPARED))
        prepared = Prepared.model_validate_json(content)
    except (NotFoundError, ValueError):
        return None
    if (prepared.job_uid, prepared.config_hash) != (config.job.uid, config.config_hash):
        return None
    return _result(prepared), hashlib.sha256(content).hexdigest()


def _read_model(config: RunConfig, env: Environment) -> BaseModel:
    with _phase("model") as said:
        model = read_base_model(config, env)
        shape = model.shape
        said.append(f"{shape.family}, {shape.parameters() / 1e6:.0f} million parameters, revision {model.revision}")
    return model


def _read_data(config: RunConfig, model: BaseModel, scratch: Path) -> Data:
    source = config.spec.dataset
    with _phase("data") as said:
        parts = data_parts(source, scratch / "data")
        seen = survey(parts)
        plan = choose_plan(seen, parts, fraction=source.validation.fraction, max_samples=source.max_samples)
        said.append(f"{seen.examples} examples ({seen.format}), {plan.held_out} held out")
    with _phase("tokens") as said:
        started = time.monotonic()
        encoder = Encoder(
            model.tokenizer, shape=seen.format, loss=choose_loss(config.spec, seen.format), chat=seen.chat
        )
        held_out = HeldOut(config.spec.evaluation.max_examples)
        tokens = tokenise(
            parts, plan=plan, encoder=encoder, tokenizer=model.tokenizer, held_out=held_out, folder=scratch
        )
        (scratch / paths.PREPARED_DIR).mkdir()
        held_out.write(scratch / paths.PREPARED_DIR / HELD_OUT)
        rate = seen.examples / (time.monotonic() - started)
        said.append(f"{sum(tokens.lengths)} tokens, {rate:.0f} examples a second")
    log.info("the first example, what is trained on in ⟦⟧:\n%s", tokens.first_example)
    shutil.rmtree(scratch / "data", ignore_errors=True)
    return Data(parts, seen, plan, tokens, measure(tokens.lengths), encoder.stop_ids)


def _must_fit(config: RunConfig, choice: Choice, shape: ModelShape) -> None:
    """Raise WILL_NOT_FIT with the numbers, if the GPU is known and too small."""
    found = choice.estimate
    if found.fits is not False or found.gpu_bytes is None:
        return
    parts = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in found.breakdown.items())
    advice = what_would_fit(config.spec, choice, shape=shape, gpu_bytes=found.gpu_bytes)
    raise TrainerError(
        ExitCode.WILL_NOT_FIT,
        f"{config.spec.method} at maxSequenceLength {choice.max_sequence_length}, microBatchSize "
        f"{choice.micro_batch_size} needs about {found.per_gpu_bytes / _GIB:.1f} GiB, the GPU has "
        f"{found.gpu_bytes / _GIB:.1f} GiB ({parts}); {advice}.",
    )


def _cut(data: Data, choice: Choice, scratch: Path) -> Shards:
    longest, folder = choice.max_sequence_length, scratch / paths.PREPARED_DIR
    with _phase("shards") as said:
        train, train_cut = write_shards(data.tokens.train, folder, part="train", longest=longest)
        held, held_cut = write_shards(data.tokens.validation, folder, part="validation", longest=longest)
        said.append(f"{len(train) + len(held)}, sequences of at most {longest} tokens")
    for name, cut in (("the training", train_cut), ("the held-out", held_cut)):
        if not cut.rows:
            raise TrainerError(
                ExitCode.EXAMPLES_TOO_LONG,
                f"At maxSequenceLength {longest} nothing to train on remains of any of {name} part's {cut.dropped} "
                f"examples (the longest has {data.lengths.longest} tokens): raise it, or shorten the prompts.",
            )
    return Shards(train_cut, held_cut, train + held)


def _store(config: RunConfig, store: Store, scratch: Path) -> dict[str, OutputFile]:
    with _phase("upload") as said:
        folder = scratch / paths.PREPARED_DIR
        stored = upload_folder(store, folder, paths.join(config.run_uri, paths.PREPARED_DIR))
        said.append(f"{len(stored)} files, {sum(file.bytes for file in stored) / (1 << 20):.1f} MiB")
    return {file.path: file for file in stored}


def _shard(shard: LocalShard, stored: OutputFile) -> Shard:
    path = paths.join(paths.PREPARED_DIR, shard.name)
    return Shard(
        split=shard.part,
        path=path,
        rows=shard.rows,
        tokens=shard.tokens,
        sha256=stored.sha256,
        bytes=stored.bytes,
    )


def _summary(config: RunConfig, *, data: Data, shards: Shards, resolved: Resolved, model: BaseModel) -> DatasetSummary:
    seen, train, held = data.survey, shards.train, shards.validation
    observed = replace(
        observe(config.spec, seen, data.plan, train_examples=train.rows),
        truncated=train.truncated + held.truncated,
        dropped=train.dropped + held.dropped,
        longest=data.lengths.longest,
        max_sequence_length=resolved.max_sequence_length,
        with_special_tokens=data.tokens.with_special_tokens,
        left_out=data.tokens.left_out,
        stop_token=_unknown_stop(data, model),
    )
    advice = warnings(observed)
    for warning in advice:
        log.warning("%s", warning)
    return DatasetSummary(
        **dict(counts(seen, observed, validation_examples=held.rows, advice=advice)),
        train_tokens=train.tokens,
        loss_tokens=train.loss_tokens,
        longest=observed.longest,
        truncated=observed.truncated,
        dropped=observed.dropped,
    )


def _unknown_stop(data: Data, model: BaseModel) -> str | None:
    if not model.stops or model.stops & set(data.stop_ids):
        return None
    return str(model.tokenizer.convert_ids_to_tokens(data.stop_ids[0]))


def _result(prepared: Prepared) -> PrepareResult:
    return PrepareResult(dataset=prepared.dataset, estimate=prepared.estimate, resolved=prepared.resolved)


@contextmanager
def _settings_are_the_users() -> Iterator[None]:
    """Turn a contradiction in the settings into CONFIG_INVALID."""
    try:
        yield
    except ResolveError as error:
        raise TrainerError(ExitCode.CONFIG_INVALID, str(error)) from error


@contextmanager
def _phase(name: str) -> Iterator[list[str]]:
    """Log one line when a phase is done: its name, what it found, how long it took."""
    started = time.monotonic()
    said: list[str] = []
    yield said
    log.info("%s: %s (%.1f s)", name, "; ".join(said), time.monotonic() - started)
