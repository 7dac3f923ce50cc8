"""Base against tuned: where they differ, whether that is more than chance, and whether bounds are kept."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from finetune_contract.evaluation import Comparison, EvaluationSummary, Scores, Verdict
from finetune_contract.measures import Gate, Measure
from finetune_trainer.evaluation.bootstrap import ENOUGH, Interval, difference_of_means
from finetune_trainer.evaluation.digits import significant
from finetune_trainer.evaluation.forgetting import ratio
from finetune_trainer.evaluation.gates import check_gate
from finetune_trainer.evaluation.judge import Judged
from finetune_trainer.evaluation.measured import Measured

_DIGITS = 4


def summarise(
    base: Measured, tuned: Measured, *, gates: tuple[Gate, ...] = (), judged: Judged | None = None
) -> EvaluationSummary:
    """Return scores, differences and gates of two models that were measured on the same examples."""
    before, after = base.scores, tuned.scores
    found = list(_comparisons(base, tuned))
    if judged and judged.scores:
        won = judged.scores
        before, after = (
            before.model_copy(update={"judge": 1 - fmean(won)}),
            after.model_copy(update={"judge": fmean(won)}),
        )
        pairs = difference_of_means([(1 - score, 1) for score in won], [(score, 1) for score in won])
        found.append(compare(Measure.JUDGE, pairs, examples=len(won)))
    return EvaluationSummary(
        base=_rounded(before),
        tuned=_rounded(after),
        comparisons=tuple(found),
        gates=tuple(check_gate(gate, base=before, tuned=after) for gate in gates),
        judge=judged.counts if judged else None,
        warnings=(judged.warning,) if judged and judged.warning else (),
    )


def compare(metric: Measure, change: Interval, *, examples: int, no_change: float = 0.0) -> Comparison:
    """Return what an interval says: a difference is one only where it leaves out "no change", on examples enough."""
    better = change.high < no_change if metric in _LOWER_IS_BETTER else change.low > no_change
    worse = change.low > no_change if metric in _LOWER_IS_BETTER else change.high < no_change
    verdict = Verdict.BETTER if better else Verdict.WORSE if worse else Verdict.NO_CLEAR_DIFFERENCE
    return Comparison(
        metric=metric,
        change=significant(change.value, _DIGITS),
        low=significant(change.low, _DIGITS),
        high=significant(change.high, _DIGITS),
        verdict=verdict if examples >= ENOUGH else Verdict.NO_CLEAR_DIFFERENCE,
    )


_LOWER_IS_BETTER = (Measure.LOSS, Measure.PERPLEXITY, Measure.FORGETTING)


def _comparisons(base: Measured, tuned: Measured) -> Iterator[Comparison]:
    """Yield one a measure that both models have; perplexity says the same as loss and has none."""
    if base.losses and tuned.losses:
        yield compare(Measure.LOSS, difference_of_means(base.losses, tuned.losses), examples=len(tuned.losses))
    if base.general_losses and tuned.general_losses:
        change = ratio(difference_of_means(base.general_losses, tuned.general_losses))
        yield compare(Measure.FORGETTING, change, examples=len(tuned.general_losses), no_change=1.0)
    for metric in (measure for measure in Measure if measure in base.answer_scores and measure in tuned.answer_scores):
        before, after = ([(score, 1) for score in each.answer_scores[metric]] for each in (base, tuned))
        yield compare(metric, difference_of_means(before, after), examples=len(after))


def _rounded(scores: Scores) -> Scores:
    return Scores(**{name: significant(value) for name, value in dict(scores).items() if value is not None})
