"""The prepare stage: everything that can be known before a GPU is busy.

It claims the run's folder, reads the model's configuration and tokenizer, checks the data, splits, tokenises, chooses
what the user left open, estimates memory and stores the shards, `prepared.json` last. A job that cannot work ends here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetune_contract import paths
from finetune_contract.exit_codes import ExitCode
from finetune_contract.fitting import ResolveError
from finetune_contract.outcome import OutputFile, PrepareResult
from finetune_contract.prepared import DatasetSummary, Prepared, Shard
from finetune_contract.resolve import Choice, DataFacts, choose, resolve
from finetune_contract.run_config import RunConfig, Use
from finetune_contract.shape import ModelShape
from finetune_contract.spec import TuningSpec
from finetune_contract.would_fit import what_would_fit
from finetune_trainer.base_model import BaseModel, read_base_model
from finetune_trainer.checkpoints.resume_check import check_resume
from finetune_trainer.data import record
from finetune_trainer.data.advice import warnings
from finetune_trainer.data.cut import HELD_OUT, cut_data, phase, read_data
from finetune_trainer.data.observe import counts, under
from finetune_trainer.data.parts import Part, data_parts, digest_of_parts, revisions_of_parts
from finetune_trainer.data.record import DataRecord, data_key
from finetune_trainer.data.reuse import find_earlier, take_over
from finetune_trainer.data.shards import LocalShard
from finetune_trainer.data.tokenize import padding_token
from finetune_trainer.environment import Environment
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.evaluation.forgetting import is_measured, paragraphs
from finetune_trainer.evaluation.metrics import check_metrics, scorers
from finetune_trainer.logs import log
from finetune_trainer.outputs.claim import claim_run
from finetune_trainer.parallel.deepspeed_config import own_config
from finetune_trainer.storage import Store, open_store
from finetune_trainer.storage.folders import upload_folder
from finetune_trainer.training.cpu import multiplies_bfloat16

_GIB = 1 << 30


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
        parts = data_parts(spec.dataset, scratch / "data")
        digest = digest_of_parts(parts)
        data, choice = _known(config, store, _Source(parts, digest, model), scratch)
        resolved = resolve(
            spec,
            choice,
            train_examples=data.train.rows,
            model_revision=model.revision,
            dataset_revision=revisions_of_parts(parts),
            dataset_sha256=digest,
        )
    own_config(spec, resolved)  # one that contradicts the job is known here
    stored = _store(config, store, scratch)
    prepared = Prepared(
        job_uid=config.job.uid,
        config_hash=config.config_hash,
        dataset=_summary(spec, data),
        estimate=choice.estimate,
        resolved=resolved,
        pad_token_id=padding_token(model.tokenizer),
        shards=tuple(_shard(shard, stored[shard.name]) for shard in data.shards),
        held_out=paths.join(paths.PREPARED_DIR, HELD_OUT),
        first_example=data.first_example,
        token_histogram=data.token_histogram,
        label_histogram=dict(data.observed.labels),
    )
    check_resume(config, prepared, store)
    return prepared


@dataclass(frozen=True, slots=True)
class _Source:
    """What the data are made of."""

    parts: list[Part]
    sha256: str
    model: BaseModel


def _known(config: RunConfig, store: Store, source: _Source, scratch: Path) -> tuple[DataRecord, Choice]:
    """Return what the data became and what that settles; the shards lie in the folder that is stored."""
    folder, model = scratch / paths.PREPARED_DIR, source.model
    folder.mkdir()
    key = data_key(config, data_sha256=source.sha256, model_revision=model.revision)
    if found := find_earlier(config, store, key=key):
        choice = _choose(config, model, found.data.facts)
        if choice.max_sequence_length == found.data.max_sequence_length and take_over(found, store, folder):
            return _recorded(found.data, folder), choice
    read = read_data(
        config.spec,
        source.parts,
        tokenizer=model.tokenizer,
        stops=model.stops,
        scratch=scratch,
        held_out=folder / HELD_OUT,
    )
    shutil.rmtree(scratch / "data", ignore_errors=True)
    log.info("the first example, what is trained on in ⟦⟧:\n%s", read.tokens.first_example)
    choice = _choose(config, model, read.facts)
    data = cut_data(read, folder, key=key, spec=config.spec, longest=choice.max_sequence_length)
    return _recorded(data, folder), choice


def _recorded(data: DataRecord, folder: Path) -> DataRecord:
    (folder / record.NAME).write_text(data.model_dump_json(), encoding="utf-8")
    return data


def _choose(config: RunConfig, model: BaseModel, facts: DataFacts) -> Choice:
    check_metrics(config.spec.evaluation, facts.format)
    choice = choose(
        config.spec,
        device=config.device,
        facts=facts,
        shape=model.shape,
        limit=model.limit,
        fast_bfloat16=multiplies_bfloat16(),
    )
    _must_fit(config, choice, model.shape)
    return choice


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
    with phase("model") as said:
        model = read_base_model(config, env)
        shape = model.shape
        said.append(f"{shape.family}, {shape.parameters() / 1e6:.0f} million parameters, revision {model.revision}")
    return model


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


def _store(config: RunConfig, store: Store, scratch: Path) -> dict[str, OutputFile]:
    with phase("upload") as said:
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


def _summary(spec: TuningSpec, data: DataRecord) -> DatasetSummary:
    observed = under(spec, data.observed)
    advice = warnings(observed)
    for warning in advice:
        log.warning("%s", warning)
    return DatasetSummary(
        **dict(counts(observed, shape=data.facts.format, validation_examples=data.validation.rows, advice=advice)),
        train_tokens=data.train.tokens,
        loss_tokens=data.train.loss_tokens,
        longest=observed.longest,
        truncated=observed.truncated,
        dropped=observed.dropped,
    )


def _result(prepared: Prepared) -> PrepareResult:
    return PrepareResult(dataset=prepared.dataset, estimate=prepared.estimate, resolved=prepared.resolved)


@contextmanager
def _settings_are_the_users() -> Iterator[None]:
    """Turn a contradiction in the settings into CONFIG_INVALID."""
    try:
        yield
    except ResolveError as error:
        raise TrainerError(ExitCode.CONFIG_INVALID, str(error)) from error
