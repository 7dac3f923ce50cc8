"""First pass: check every record, and remember of each example just what the split and the warnings need."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.exit_codes import ExitCode
from finetune_trainer.data.checks import Checks
from finetune_trainer.data.examples import Conversation, Example, example_digest, prompt_digest, text_digest
from finetune_trainer.data.formats import CHAT, parse
from finetune_trainer.data.parts import Part
from finetune_trainer.data.problems import BadExampleError, Problems
from finetune_trainer.data.progress import told
from finetune_trainer.data.read import Record, records
from finetune_trainer.errors import TrainerError

_SYSTEM_PROMPTS_KEPT = 1000
_NAMED = 3
"""Files that a message names."""


@dataclass(slots=True)
class Survey:
    """What the first pass saw, example by example in reading order."""

    format: DatasetFormat
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    """Digest of each prompt."""
    wholes: array[int] = field(default_factory=lambda: array("Q"))
    """Digest of each example."""
    sizes: list[int] = field(default_factory=list)
    """Examples of each part, in the order of the parts."""
    system_prompts: set[int | None] = field(default_factory=set)
    """Digests of different system prompts; None stands for conversations without."""
    checks: Checks = field(default_factory=Checks)
    """Counts about the texts."""

    @property
    def examples(self) -> int:
        """Examples read."""
        return len(self.wholes)

    @property
    def chat(self) -> bool:
        """Whether the examples are conversations."""
        return bool(self.system_prompts)

    @property
    def duplicates(self) -> int:
        """Examples equal to an earlier one."""
        return self.examples - len(np.unique(np.frombuffer(self.wholes, dtype=np.uint64)))

    def add(self, example: Example) -> None:
        """Remember one example. Raises BadExampleError for turns among texts, and the other way round."""
        if self.examples and isinstance(example, Conversation) != self.chat:
            kinds = ("turns", "texts") if self.chat else ("texts", "turns")
            raise BadExampleError("is of {1}, but earlier examples are of {0}: write all the same way".format(*kinds))
        self.prompts.append(prompt_digest(example))
        self.wholes.append(example_digest(example))
        self.checks.add(example)
        if isinstance(example, Conversation) and len(self.system_prompts) < _SYSTEM_PROMPTS_KEPT:
            self.system_prompts.add(None if example.system is None else text_digest(example.system))


def survey(parts: Sequence[Part]) -> Survey:
    """Read all data. Raises DATASET_INVALID with the first bad records, DATASET_TOO_SMALL if a part has no example."""
    problems, formats = Problems(), _Formats()
    found: Survey | None = None
    sizes: list[int] = []
    for part in parts:
        before = found.examples if found else 0
        for record in told(records(part.files, problems), "data"):
            try:
                shape, example = parse(record.value, part.reading)
                formats.check(shape, record, part_number=len(sizes))
                found = found or Survey(shape)
                found.add(example)
            except BadExampleError as bad:
                problems.add(record.where, str(bad))
        sizes.append(found.examples - before if found else 0)
    problems.raise_if_any()
    if found is None or 0 in sizes:
        raise TrainerError(ExitCode.DATASET_TOO_SMALL, _empty(parts, sizes))
    found.sizes = sizes
    found.format = formats.together
    _check_system_prompt(parts, found.format)
    return found


def examples(parts: Sequence[Part]) -> Iterator[tuple[str, Example]]:
    """Second pass: yield where each example stands and the example. The first pass has vouched for every one."""
    for part in parts:
        for record in records(part.files, Problems()):
            yield record.where, parse(record.value, part.reading)[1]


class _Formats:
    """Holds the format of each record against those before: one a source, and of several sources one kind."""

    def __init__(self) -> None:
        self._first: dict[int, tuple[DatasetFormat, str]] = {}

    def check(self, shape: DatasetFormat, record: Record, *, part_number: int) -> None:
        earlier, where = self._first.setdefault(part_number, (shape, record.where))
        if shape is not earlier:
            raise BadExampleError(f"is {shape}, but {where} is {earlier}: give all examples the same format")
        other, where = self._first[min(self._first)]
        if shape is not other and not {shape, other} <= CHAT:
            raise BadExampleError(
                f"is {shape}, but {where} of another source is {other}: only sources of conversations "
                f"({', '.join(sorted(CHAT))}) mix with each other"
            )

    @property
    def together(self) -> DatasetFormat:
        """The one format, or messages for several kinds of conversations."""
        shapes = {shape for shape, _ in self._first.values()}
        return shapes.pop() if len(shapes) == 1 else DatasetFormat.MESSAGES


def _empty(parts: Sequence[Part], sizes: Sequence[int]) -> str:
    empty = next(part for part, size in zip(parts, sizes, strict=True) if not size)
    names = [file.name for file in empty.files]
    if len(names) == 1:
        return f"The data set has no examples: {names[0]} is empty."
    return f"The data set has no examples: {', '.join(names[:_NAMED])}{', ...' if names[_NAMED:] else ''} are empty."


def _check_system_prompt(parts: Sequence[Part], shape: DatasetFormat) -> None:
    if shape not in CHAT and any(part.reading.system_prompt for part in parts):
        raise TrainerError(
            ExitCode.CONFIG_INVALID,
            f"dataset.systemPrompt is for conversations, the data is {shape}: remove it, or write it into the data.",
        )
