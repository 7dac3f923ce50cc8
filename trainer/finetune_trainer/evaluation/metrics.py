"""Scores of generated answers: for each held-out example a number between 0 and 1, whose mean is the metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from finetune_contract.dataset_spec import DatasetFormat
from finetune_contract.exit_codes import ExitCode
from finetune_contract.measures import Measure, MetricName
from finetune_contract.spec import Evaluation
from finetune_trainer.data.dataset import Question
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.json_answers import is_json, schema_check
from finetune_trainer.evaluation.rouge import rouge_l
from finetune_trainer.logs import log

_SECONDS = 1.0
"""Longest search for a pattern in one answer: some patterns take exponential time."""

T = TypeVar("T")
Scorer = Callable[[str, str], float]
"""From an answer and the expected one to a score."""


def scores_of(
    questions: Sequence[Question], answers: Sequence[str], settings: Evaluation
) -> dict[MetricName, list[float]]:
    """Return, for each metric that is asked for, one score an answered question. Raises CONFIG_INVALID."""
    if not answers:
        return {}
    pairs = list(zip(answers, (question.answer for question in questions), strict=False))
    return {metric: [score(*pair) for pair in pairs] for metric, score in scorers(settings).items()}


def scorers(settings: Evaluation) -> dict[MetricName, Scorer]:
    """Return a function for each metric that is asked for. Raises CONFIG_INVALID for a schema that is none."""
    return {metric: _scorer(metric, settings) for metric in settings.metrics}


def check_metrics(settings: Evaluation, shape: DatasetFormat) -> None:
    """Raise CONFIG_INVALID if answers are asked of data without questions, or what is bounded is not measured.

    The API server refuses the second in a job, but not in what a profile's defaults make of it.
    """
    measured = {*_ALWAYS, *settings.metrics, *([Measure.JUDGE] if settings.judge else [])}
    measured |= {Measure.FORGETTING} if settings.forgetting.enabled and settings.compare_with_base else set()
    for gate in settings.gates:
        if gate.metric not in measured:
            raise TrainerError(
                ExitCode.CONFIG_INVALID,
                f"evaluation.gates: {gate.metric} is not measured: add it to evaluation.metrics, or remove the gate.",
            )
    asked = "metrics" if settings.metrics else "judge" if settings.judge else None
    if asked and shape is DatasetFormat.TEXT:
        raise TrainerError(
            ExitCode.CONFIG_INVALID,
            f"evaluation.{asked}: the data are plain text, which has no questions to answer: remove {asked}, or give "
            "the data prompts and answers (promptCompletion).",
        )


_ALWAYS = (Measure.LOSS, Measure.PERPLEXITY)


def _set_up(metric: MetricName, setting: T | None) -> T:
    if setting is None:
        raise TrainerError(
            ExitCode.CONFIG_INVALID, f"evaluation.metrics: {metric} needs evaluation.{metric}, which is not set."
        )
    return setting


def _scorer(metric: MetricName, settings: Evaluation) -> Scorer:
    match metric:
        case MetricName.EXACT_MATCH:
            return lambda answer, expected: float(answer.strip() == expected.strip())
        case MetricName.REGEX:
            found = _search(_set_up(metric, settings.regex).pattern)
            return lambda answer, _: float(found(answer))
        case MetricName.JSON_VALID:
            return lambda answer, _: float(is_json(answer))
        case MetricName.JSON_SCHEMA:
            fits = schema_check(_set_up(metric, settings.json_schema))
            return lambda answer, _: float(fits(answer))
        case MetricName.ROUGE:
            return rouge_l


def _search(pattern: str) -> Callable[[str], bool]:
    import regex  # searches within a time limit, as Python's own module cannot

    compiled = regex.compile(pattern)

    def found(answer: str) -> bool:
        try:
            return compiled.search(answer.strip(), timeout=_SECONDS) is not None
        except TimeoutError:
            log.warning("evaluation.regex: the pattern took over a second on an answer, which counts as no match")
            return False

    return found
