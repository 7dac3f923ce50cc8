"""The sources of a data set: where each lies, how its records are read, and how often they count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_contract.spec import DatasetSource
from finetune_trainer.data.files import data_digest, data_files
from finetune_trainer.data.formats import Reading
from finetune_trainer.data.read import DataFile


@dataclass(frozen=True, slots=True)
class Part:
    """One source on this machine."""

    files: list[DataFile]
    reading: Reading
    weight: float = 1
    """How often an example is trained on in an epoch; below 1, which share of the examples is."""
    is_validation: bool = False
    """Whether it is the given validation set: held out as a whole."""


def data_parts(dataset: DatasetSource, folder: Path) -> list[Part]:
    """Fetch all sources into a folder, the given validation set last. Raises DATASET_NOT_FOUND, and as storage does."""
    return [
        Part(
            data_files(one.uri, folder / str(number), field=one.field, revision=one.revision, splits=one.splits),
            one.reading,
            one.weight,
            one.is_validation,
        )
        for number, one in enumerate(_sources(dataset))
    ]


def digest_of_parts(parts: Sequence[Part]) -> str:
    """Return the sha256 over all files; that of the one file, where there is but one."""
    several = len(parts) > 1
    return data_digest(
        [
            DataFile(file.path, f"{number}/{file.name}" if several else file.name, file.sha256)
            for number, part in enumerate(parts)
            for file in part.files
        ]
    )


@dataclass(frozen=True, slots=True)
class _Source:
    field: str
    uri: str
    reading: Reading
    revision: str | None
    splits: tuple[str, ...] = ("train",)
    weight: float = 1
    is_validation: bool = False


def _sources(dataset: DatasetSource) -> Iterator[_Source]:
    reading = Reading(dataset.format, dataset.columns, dataset.system_prompt)
    if dataset.uri:
        yield _Source("uri", dataset.uri, reading, dataset.revision, (dataset.split or "train",))
    for number, one in enumerate(dataset.sources):
        own = replace(reading, format=one.format or dataset.format, columns=one.columns or dataset.columns)
        yield _Source(f"sources[{number}].uri", one.uri, own, one.revision, weight=one.weight)
    given = dataset.validation
    if given.uri:
        wanted = ("validation", "test")
        yield _Source("validation.uri", given.uri, reading, given.revision, wanted, is_validation=True)
