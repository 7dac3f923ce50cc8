"""The examples as train reads them: prepare's shards, each held against its sha256, and batches made of them.

A batch is either padded or, with packing, flattened: the examples lie one after the other in a single sequence
without padding and, by their position ids, without attention between them. So packing changes how fast a step is,
never what it computes: batchSize counts examples in both cases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_contract import paths
from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.exit_codes import ExitCode
from finetune_contract.prepared import Prepared, Shard
from finetune_contract.run_config import RunConfig
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.storage import Store

IGNORED = -100
"""Label of a token that no loss is taken on."""

Row = dict[str, Any]
"""One example: `input_ids` and `labels`; of a preference `rejected_ids` and `rejected_labels`, too."""
SINGLE = ["input_ids", "labels"]
PAIR = [*SINGLE, "rejected_ids", "rejected_labels"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked: the turns of a chat, with the tools that it may call, or a text to go on from."""

    prompt: str | list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class Question(Asked):
    """One held-out example for generation, with the answer that the data give."""

    answer: str


@dataclass(frozen=True, slots=True)
class Data:
    """All that a run trains on and is measured with."""

    train: Any
    """datasets.Dataset with the columns of a Row."""
    validation: list[Row]
    questions: list[Question]
    general: Sequence[Row] = ()
    """General text, on which forgetting is measured."""


def read_prepared(config: RunConfig, store: Store) -> Prepared:
    """Read prepared.json and hold it against the hash that prepare reported. Raises PREPARED_DATA_CHANGED."""
    uri = paths.join(config.run_uri, paths.PREPARED)
    try:
        content = store.read(uri)
    except NotFoundError as error:
        raise _changed(f"{uri} is not there") from error
    if config.prepared_sha256 and hashlib.sha256(content).hexdigest() != config.prepared_sha256:
        raise _changed(f"{uri} is not the one that prepare reported")
    try:
        return Prepared.model_validate_json(content)
    except ValidationError as error:
        raise _changed(f"{uri} cannot be read: {error.error_count()} fields do not fit") from error


def fetch_data(config: RunConfig, prepared: Prepared, store: Store, *, folder: Path) -> Data:
    """Fetch the shards that prepared.json lists into a folder. Raises PREPARED_DATA_CHANGED."""
    from datasets import Dataset

    columns = PAIR if prepared.dataset.format is DatasetFormat.PREFERENCE else SINGLE
    train, validation = (
        [str(_fetch_shard(config, shard, store, folder)) for shard in prepared.shards if shard.split == split]
        for split in ("train", "validation")
    )
    held_out = folder / "held-out.jsonl"
    _download(store, paths.join(config.run_uri, prepared.held_out), held_out)
    return Data(
        train=Dataset.from_parquet(train, cache_dir=str(folder / "arrow"), columns=columns),
        validation=_rows(validation, columns),
        questions=[_question(json.loads(line)) for line in held_out.read_text(encoding="utf-8").splitlines() if line],
    )


def batches_by_length(rows: Sequence[Row], *, max_tokens: int) -> Iterator[list[Row]]:
    """Yield all rows, longest first, in batches of at most `max_tokens` tokens with padding (but at least one row)."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: -len(row["input_ids"])):
        if batch and len(batch[0]["input_ids"]) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def row_lengths(rows: Any) -> list[int]:
    """Return each example's tokens: of a preference those of the longer side."""
    lengths = [len(ids) for ids in rows["input_ids"]]
    if "rejected_ids" not in rows.column_names:
        return lengths
    return [max(length, len(ids)) for length, ids in zip(lengths, rows["rejected_ids"], strict=True)]


def collator(prepared: Prepared, *, flatten: bool) -> Any:
    """Return TRL's collator for training batches, with the pad token that prepare chose."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=prepared.pad_token_id, padding_free=flatten)


def _fetch_shard(config: RunConfig, shard: Shard, store: Store, folder: Path) -> Path:
    path = folder / Path(shard.path).name
    uri = paths.join(config.run_uri, shard.path)
    if _download(store, uri, path) != shard.sha256:
        raise _changed(f"{uri} does not have the sha256 that prepared.json gives")
    return path


def _download(store: Store, uri: str, path: Path) -> str:
    if path.is_file():  # fetched by another process of this node
        return hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        return store.download(uri, path)
    except NotFoundError as error:
        raise _changed(f"{uri} is not there") from error


def _rows(files: list[str], columns: list[str]) -> list[Row]:
    from pyarrow import parquet

    rows: list[Row] = []
    for file in files:
        rows += parquet.read_table(file, columns=columns).to_pylist()
    return rows


def _question(record: dict[str, Any]) -> Question:
    prompt = record["messages"] if "messages" in record else record["prompt"]
    return Question(prompt=prompt, answer=record["answer"], tools=record.get("tools"))


def _changed(what: str) -> TrainerError:
    return TrainerError(ExitCode.PREPARED_DATA_CHANGED, f"Prepared data: {what}. A new run prepares it again.")
