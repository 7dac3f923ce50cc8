"""The sources of a data set: where each lies, how its records are read, and how often they count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
        Part(data_files(uri, folder / str(number), field=field), reading, weight, is_validation)
        for number, (field, uri, reading, weight, is_validation) in enumerate(_sources(dataset))
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


def _sources(dataset: DatasetSource) -> Iterator[tuple[str, str, Reading, float, bool]]:
    if dataset.uri:
        yield "uri", dataset.uri, _reading(dataset), 1, False
    for number, source in enumerate(dataset.sources):
        columns = source.columns or dataset.columns
        reading = Reading(source.format or dataset.format, columns, dataset.system_prompt)
        yield f"sources[{number}].uri", source.uri, reading, source.weight, False
    if dataset.validation.uri:
        yield "validation.uri", dataset.validation.uri, _reading(dataset), 1, True


def _reading(dataset: DatasetSource) -> Reading:
    return Reading(dataset.format, dataset.columns, dataset.system_prompt)
