"""The rules of spec.evaluation: what is bounded is measured, and what is measured is set up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from finetune_contract.measures import Measure, MetricName
from finetune_operator.api.rule import Rule

_AT = ("spec", "evaluation")
_COMPARES = "(!has(self.compareWithBase) || self.compareWithBase)"
_FORGETTING = f"({_COMPARES} && (!has(self.forgetting) || !has(self.forgetting.enabled) || self.forgetting.enabled))"
_ALWAYS = [Measure.LOSS.value, Measure.PERPLEXITY.value]
_HINTS = {MetricName.REGEX: "regex: {pattern: ...}", MetricName.JSON_SCHEMA: "jsonSchema: {type: object, ...}"}


def evaluation_rules() -> Iterator[Rule]:
    """Yield them all."""
    yield from _metric_rules()
    yield from _gate_rules()
    yield Rule(
        _AT,
        f"{_COMPARES} || !has(self.forgetting) || !has(self.forgetting.uri)",
        "compareWithBase is false: forgetting cannot be measured without the base; remove forgetting.uri",
        lambda evaluation: _compares(evaluation) or "uri" not in evaluation.get("forgetting", {}),
    )
    yield Rule(
        _AT,
        f"{_COMPARES} || !has(self.judge)",
        "compareWithBase is false: the judge compares with the base; remove judge",
        lambda evaluation: _compares(evaluation) or "judge" not in evaluation,
    )


def _metric_rules() -> Iterator[Rule]:
    """A metric and what it looks for come together: one without the other would measure nothing."""
    for metric, hint in _HINTS.items():
        listed = f"has(self.metrics) && '{metric}' in self.metrics"
        yield Rule(
            _AT,
            f"!({listed}) || has(self.{metric})",
            f"the metric {metric} needs something to look for: add {hint} beside metrics",
            partial(_is_set_up, metric),
        )
        yield Rule(
            _AT,
            f"!has(self.{metric}) || ({listed})",
            f"{metric} is for the metric of that name: add {metric} to metrics, or remove it",
            partial(_is_listed, metric),
        )


def _gate_rules() -> Iterator[Rule]:
    yield _every_gate(
        "has(gate.min) || has(gate.max)",
        "a gate needs a bound: give it min or max",
        lambda gate: "min" in gate or "max" in gate,
    )
    yield _every_gate(
        "!has(gate.min) || !has(gate.max) || gate.min <= gate.max",
        "a gate's min must not be above its max",
        lambda gate: "min" not in gate or "max" not in gate or gate["min"] <= gate["max"],
    )
    yield _every_gate(
        "gate.metric != 'forgetting' || !has(gate.relativeTo)",
        "forgetting compares with the base already, as a ratio: remove relativeTo",
        lambda gate: gate.get("metric") != Measure.FORGETTING or "relativeTo" not in gate,
    )
    yield Rule(
        _AT,
        f"{_COMPARES} || !has(self.gates) || self.gates.all(gate, !has(gate.relativeTo))",
        "compareWithBase is false: a gate with relativeTo base has nothing to be held against",
        lambda evaluation: (
            _compares(evaluation) or all("relativeTo" not in gate for gate in evaluation.get("gates", ()))
        ),
    )
    yield Rule(
        _AT,
        f"!has(self.gates) || self.gates.all(gate, gate.metric in {_ALWAYS} || "
        f"(has(self.metrics) && gate.metric in self.metrics) || (gate.metric == 'forgetting' && {_FORGETTING}) || "
        "(gate.metric == 'judge' && has(self.judge)))",
        "a gate bounds something that is not measured: add it to metrics, set judge, or switch forgetting and "
        "compareWithBase on",
        lambda evaluation: all(_is_measured(evaluation, gate.get("metric")) for gate in evaluation.get("gates", ())),
    )


def _every_gate(cel: str, message: str, holds: Callable[[dict[str, Any]], bool]) -> Rule:
    return Rule(
        _AT,
        f"!has(self.gates) || self.gates.all(gate, {cel})",
        message,
        lambda evaluation: all(map(holds, evaluation.get("gates", ()))),
    )


def _is_set_up(metric: str, evaluation: dict[str, Any]) -> bool:
    return metric in evaluation or metric not in evaluation.get("metrics", ())


def _is_listed(metric: str, evaluation: dict[str, Any]) -> bool:
    return metric in evaluation.get("metrics", ()) or metric not in evaluation


def _is_measured(evaluation: dict[str, Any], metric: Any) -> bool:
    if metric == Measure.FORGETTING:
        return bool(_compares(evaluation) and evaluation.get("forgetting", {}).get("enabled", True))
    if metric == Measure.JUDGE:
        return "judge" in evaluation
    # The types report a metric that there is not.
    return metric in (*_ALWAYS, *evaluation.get("metrics", ())) or metric not in set(Measure)


def _compares(evaluation: dict[str, Any]) -> bool:
    return bool(evaluation.get("compareWithBase", True))
