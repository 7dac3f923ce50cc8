"""What evaluation found: it stands in the manifest, fills `status.evaluation`, and travels in a termination message."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from finetune_contract.measures import Gate, Measure
from finetune_contract.model import Model


class Scores(Model):
    """One model on the held-out part."""

    loss: float | None = None
    """Mean cross entropy a token that counts."""
    perplexity: float | None = None
    """exp(loss)."""
    exact_match: float | None = None
    """Share of generated answers equal to the held-out ones."""
    regex: float | None = None
    """Share of answers in which evaluation.regex was found."""
    json_valid: float | None = None
    """Share of answers that are JSON."""
    json_schema: float | None = None
    """Share of answers that fit evaluation.jsonSchema."""
    rouge: float | None = None
    """Mean ROUGE-L F1 against the held-out answers."""
    general_perplexity: float | None = None
    """Perplexity on general text."""
    judge: float | None = None
    """Share of pairs of answers that evaluation.judge gave to this model, ties counting half."""


class Verdict(StrEnum):
    """What an interval says."""

    BETTER = "Better"
    WORSE = "Worse"
    NO_CLEAR_DIFFERENCE = "NoClearDifference"


class Comparison(Model):
    """One measure, tuned against base on the same examples."""

    metric: Measure
    """What was measured."""
    change: float
    """Tuned minus base; for forgetting tuned over base, so that 1 is no change."""
    low: float
    """Lower end of the change's 95 % interval (paired bootstrap)."""
    high: float
    """Upper end."""
    verdict: Verdict
    """Better or Worse only where the interval leaves out "no change"."""


class JudgeVerdict(StrEnum):
    """What the judge says about one pair of answers, asked in both orders."""

    TUNED = "Tuned"
    BASE = "Base"
    TIE = "Tie"
    CONTRADICTORY = "Contradictory"
    """The verdict changed with the order: it counts as a tie."""
    UNCLEAR = "Unclear"
    """A reply without a verdict: it does not count."""


class JudgeCounts(Model):
    """How often the judge said what."""

    pairs: int
    """Pairs of answers."""
    tuned: int
    """Won by the tuned model."""
    base: int
    """Won by the base model."""
    tie: int
    """Equally good."""
    contradictory: int
    """Decided by the order in which the answers were shown; counted as ties."""
    unclear: int
    """Nonsense for a reply; not counted."""
    unanswered: int
    """No reply; not counted."""


class GateResult(Gate):
    """A gate, and what was found."""

    value: float | None = None
    """What the bound was held against; absent if it could not be measured."""
    passed: bool
    """Whether it keeps within the bound."""


class EvaluationSummary(Model):
    """Base against tuned: it fills `status.evaluation`."""

    base: Scores
    """The base model."""
    tuned: Scores
    """The tuned model."""
    comparisons: tuple[Comparison, ...] = ()
    """Where the two differ, measure by measure."""
    gates: tuple[GateResult, ...] = ()
    """evaluation.gates, and what was found."""
    judge: JudgeCounts | None = None
    """What evaluation.judge said."""
    warnings: tuple[str, ...] = ()
    """What could not be measured, and why."""

    @property
    def failed_gates(self) -> tuple[GateResult, ...]:
        """The gates that the tuned model did not pass."""
        return tuple(gate for gate in self.gates if not gate.passed)


def shorter(evaluation: EvaluationSummary) -> Iterator[EvaluationSummary]:
    """Yield less and less of it, for a termination message that is full: all of it stands in the manifest."""
    yield evaluation.model_copy(update={"comparisons": ()})
    yield evaluation.model_copy(update={"comparisons": (), "gates": evaluation.failed_gates})
    yield EvaluationSummary(base=evaluation.base, tuned=evaluation.tuned)
