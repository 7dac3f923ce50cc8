"""The sources of a data set: where each lies, how its records are read, and how often they count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from finetune_contract.dataset_spec import DatasetSource
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
    parts = []
    for number, one in enumerate(_sources(dataset)):
        files = data_files(one.uri, folder / str(number), field=one.field, revision=one.revision, splits=one.splits)
        if one.field != "uri":  # two sources may have files of the same name
            place = one.field.removesuffix(".uri")
            files = [replace(file, name=f"{place} {file.name}") for file in files]
        parts.append(Part(files, one.reading, one.weight, one.is_validation))
    return parts


def digest_of_parts(parts: Sequence[Part]) -> str:
    """Return the sha256 over all files; that of the one file, where there is but one."""
    return data_digest([file for part in parts for file in part.files])


def revisions_of_parts(parts: Sequence[Part]) -> str | None:
    """Return the commits of the sources that the hub has, in their order; None if there is none."""
    commits = dict.fromkeys(file.revision for part in parts for file in part.files if file.revision)
    return ", ".join(commits) or None


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
