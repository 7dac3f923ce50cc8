"""Bounds for the tuned model: whether it keeps them, and how that is said."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic.alias_generators import to_snake

from finetune_contract.evaluation import GateResult, Scores
from finetune_contract.measures import Gate, Measure
from finetune_trainer.evaluation.digits import significant


def check_gate(gate: Gate, *, base: Scores, tuned: Scores) -> GateResult:
    """Hold a bound against the tuned model's value, or its distance from the base's. What is not measured fails."""
    value = _value(gate, base=base, tuned=tuned)
    passed = value is not None and (gate.min is None or value >= gate.min) and (gate.max is None or value <= gate.max)
    return GateResult(**dict(gate), value=None if value is None else significant(value), passed=passed)


def _value(gate: Gate, *, base: Scores, tuned: Scores) -> float | None:
    field = "general_perplexity" if gate.metric is Measure.FORGETTING else to_snake(gate.metric)
    value: float | None = getattr(tuned, field)
    before: float | None = getattr(base, field)
    if gate.metric is Measure.FORGETTING:
        return value / before if value is not None and before else None
    if gate.relative_to:
        return value - before if value is not None and before is not None else None
    return value


def sentence(failed: Sequence[GateResult], run_uri: str) -> str:
    """Return what to tell the user about gates that were not passed."""
    found = "; ".join(f"{gate.metric} {_found(gate)}" for gate in failed)
    return (
        f"evaluation.gates: {found}. The outputs are at {run_uri}, with gatesPassed: false in the manifest; more or "
        "better data, other hyperparameters or another bound help."
    )


def _found(gate: GateResult) -> str:
    if gate.value is None:
        return "could not be measured"
    where = " against the base" if gate.relative_to else ""
    below = gate.min is not None and gate.value < gate.min
    bound = f"at least {gate.min:g}" if below else f"at most {gate.max:g}"
    return f"is {gate.value:+g}{where}, must be {bound}" if gate.relative_to else f"is {gate.value:g}, must be {bound}"
