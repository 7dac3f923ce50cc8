"""What is fixed after creation: everything but lifecycle and the priorities, unless a change is to be a new run."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_contract.spec import TuningSpec
from finetune_operator.api.constants import PRIORITIES
from finetune_operator.api.job import FineTuneJobSpec, Scheduling

_MUTABLE = {"lifecycle", "scheduling"}
_RERUNS = "(has(self.lifecycle) && has(self.lifecycle.onSpecChange) && self.lifecycle.onSpecChange == 'Rerun')"
_FIXED = (
    "is fixed after creation: delete the job and create a new one, or set lifecycle.onSpecChange: Rerun for a new run"
)


def immutability_rules() -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield (path, CEL, message) that fix everything but lifecycle and the priorities after creation.

    `self.?a == oldSelf.?a` exceeds the CEL cost budget, pairs of has() do not; and a rule on a whole parent
    would refuse to add a mutable field where the parent was absent (job-traps 22).
    """
    for field, alias in _aliases(FineTuneJobSpec):
        if field in _MUTABLE:
            continue
        required = TuningSpec.model_fields.get(field)
        same = f"self.{alias} == oldSelf.{alias}"
        if not (required and required.is_required()):
            same = f"has(self.{alias}) == has(oldSelf.{alias}) && (!has(self.{alias}) || {same})"
        yield ("spec",), f"{_RERUNS} || ({same})", f"spec.{alias} {_FIXED}"
    for _, alias in _aliases(Scheduling):
        if alias in PRIORITIES:
            continue
        new, old = (f"has({v}.scheduling) && has({v}.scheduling.{alias})" for v in ("self", "oldSelf"))
        same = f"({new}) == ({old}) && (!({new}) || self.scheduling.{alias} == oldSelf.scheduling.{alias})"
        yield ("spec",), f"{_RERUNS} || ({same})", f"spec.scheduling.{alias} {_FIXED}"


def _aliases(model: type[FineTuneJobSpec] | type[Scheduling]) -> list[tuple[str, str]]:
    return [(name, field.alias or name) for name, field in model.model_fields.items()]
