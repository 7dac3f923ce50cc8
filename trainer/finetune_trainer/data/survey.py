"""First pass: check every line, and remember of each example just what the split and the warnings need."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from finetune_contract.exit_codes import ExitCode
from finetune_contract.spec import DatasetFormat
from finetune_trainer.data.examples import Conversation, Example, example_digest, prompt_digest
from finetune_trainer.data.formats import detect, parse
from finetune_trainer.data.problems import BadExampleError, Problems
from finetune_trainer.data.read import DataFile, Record, records
from finetune_trainer.errors import TrainerError

_SYSTEM_PROMPTS_KEPT = 1000


@dataclass(slots=True)
class Survey:
    """What the first pass saw, example by example in reading order."""

    format: DatasetFormat
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    """Digest of each prompt."""
    wholes: array[int] = field(default_factory=lambda: array("Q"))
    """Digest of each example."""
    system_prompts: set[str | None] = field(default_factory=set)
    """Different system prompts; None stands for conversations without."""

    @property
    def examples(self) -> int:
        """Examples read."""
        return len(self.wholes)

    @property
    def duplicates(self) -> int:
        """Examples equal to an earlier one."""
        return self.examples - len(set(self.wholes))

    def add(self, example: Example) -> None:
        """Remember one example."""
        self.prompts.append(prompt_digest(example))
        self.wholes.append(example_digest(example))
        if isinstance(example, Conversation) and len(self.system_prompts) < _SYSTEM_PROMPTS_KEPT:
            first = example.turns[0]
            self.system_prompts.add(first.content if first.role == "system" else None)


def survey(files: Iterable[DataFile], given: DatasetFormat | None) -> Survey:
    """Read all data. Raises DATASET_INVALID with the first bad lines, DATASET_TOO_SMALL if there is no example."""
    problems = Problems()
    found: Survey | None = None
    first = ""
    for record in records(files, problems):
        try:
            shape = given or detect(record.value)
            if found is None:
                found, first = Survey(shape), record.where
            _must_agree(shape, record, found.format, first=first)
            found.add(parse(record.value, shape))
        except BadExampleError as bad:
            problems.add(record.where, str(bad))
    problems.raise_if_any()
    if found is None:
        raise TrainerError(ExitCode.DATASET_TOO_SMALL, "The data set has no examples: its files are empty.")
    return found


def examples(files: Iterable[DataFile], shape: DatasetFormat) -> Iterator[tuple[str, Example]]:
    """Second pass: yield where each example stands and the example. The first pass has vouched for every line."""
    for record in records(files, Problems()):
        yield record.where, parse(record.value, shape)


def _must_agree(shape: DatasetFormat, record: Record, earlier: DatasetFormat, *, first: str) -> None:
    if shape != earlier:
        raise BadExampleError(f"is {shape}, but {first} is {earlier}: give all examples the same format")
