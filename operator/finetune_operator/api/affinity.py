"""Affinity of the training pods, as in a pod's spec: to nodes, and to or from pods of the job's own namespace.

Other namespaces cannot be named: pods that keep away from those of another tenant would keep that one's off their node
as well, since the scheduler takes such a wish as mutual.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_contract.model import Model
from finetune_operator.api.rule import Rule
from finetune_operator.api.scalars import LabelKey, LabelValue

Values = Annotated[tuple[LabelValue, ...], Field(max_length=16)]
Weight = Annotated[int, Field(ge=1, le=100)]


class NodeRequirement(Model):
    """What a label of a node must be."""

    key: LabelKey
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    """How its value is compared."""
    values: Values | None = None
    """With which values: one number for Gt and Lt, none for Exists and DoesNotExist."""


class NodeTerm(Model):
    """Nodes that meet all of these."""

    match_expressions: Annotated[tuple[NodeRequirement, ...], Field(min_length=1, max_length=8)]
    """What their labels must be."""


class NodeSelector(Model):
    """Nodes that meet one of the terms."""

    node_selector_terms: Annotated[tuple[NodeTerm, ...], Field(min_length=1, max_length=8)]
    """The terms."""


class PreferredNodes(Model):
    """Nodes that are better than others."""

    weight: Weight
    """How much, 1 to 100."""
    preference: NodeTerm
    """Which nodes."""


class NodeAffinity(Model):
    """To which nodes the pods go."""

    required_during_scheduling_ignored_during_execution: NodeSelector | None = None
    """Nodes that they go to, and to no others."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredNodes, ...], Field(max_length=8)] | None
    ) = None
    """Nodes that they rather go to."""


class LabelRequirement(Model):
    """What a label of a pod must be."""

    key: LabelKey
    """The label."""
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    """How its value is compared."""
    values: Values | None = None
    """With which values; none for Exists and DoesNotExist."""


class LabelSelector(Model):
    """Pods that meet all of these."""

    match_labels: Annotated[dict[LabelKey, LabelValue], Field(max_length=16)] | None = None
    """Labels that they have."""
    match_expressions: Annotated[tuple[LabelRequirement, ...], Field(max_length=8)] | None = None
    """What their labels must be."""


class PodTerm(Model):
    """Pods of the job's namespace, and how near."""

    label_selector: LabelSelector
    """Which pods."""
    topology_key: Annotated[str, Field(min_length=1, max_length=317)]
    """Label of nodes: those with one value are one place, as kubernetes.io/hostname."""


class PreferredPods(Model):
    """Places that are better than others."""

    weight: Weight
    """How much, 1 to 100."""
    pod_affinity_term: PodTerm
    """Beside, or away from, which pods."""


class PodAffinity(Model):
    """Beside which pods, or away from which, the pods go."""

    required_during_scheduling_ignored_during_execution: Annotated[tuple[PodTerm, ...], Field(max_length=8)] | None = (
        None
    )
    """What has to hold for every one of these."""
    preferred_during_scheduling_ignored_during_execution: (
        Annotated[tuple[PreferredPods, ...], Field(max_length=8)] | None
    ) = None
    """What should hold."""


class Affinity(Model):
    """Where the pods go, as in a pod's spec."""

    node_affinity: NodeAffinity | None = None
    """To which nodes."""
    pod_affinity: PodAffinity | None = None
    """Beside which pods of the job's namespace."""
    pod_anti_affinity: PodAffinity | None = None
    """Away from which pods of the job's namespace."""


_REQUIRED, _PREFERRED = (
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
)
_SELECTED = ("labelSelector", "matchExpressions", "[]")
_REQUIREMENTS: tuple[tuple[str, ...], ...] = (
    ("nodeAffinity", _REQUIRED, "nodeSelectorTerms", "[]", "matchExpressions", "[]"),
    ("nodeAffinity", _PREFERRED, "[]", "preference", "matchExpressions", "[]"),
    *((kind, _REQUIRED, "[]", *_SELECTED) for kind in ("podAffinity", "podAntiAffinity")),
    *((kind, _PREFERRED, "[]", "podAffinityTerm", *_SELECTED) for kind in ("podAffinity", "podAntiAffinity")),
)


def affinity_rules(at: tuple[str, ...]) -> Iterator[Rule]:
    """Yield the rules of an affinity at a place: what the API server would refuse only when the pods are made."""
    for place in _REQUIREMENTS:
        yield Rule(
            (*at, *place),
            "self.operator in ['Exists', 'DoesNotExist'] ? !has(self.values) || size(self.values) == 0 : "
            "has(self.values) && size(self.values) > 0 && (!(self.operator in ['Gt', 'Lt']) || size(self.values) == 1)",
            "affinity: In and NotIn need values, Gt and Lt one, Exists and DoesNotExist none",
            _has_its_values,
        )


def _has_its_values(requirement: dict[str, Any]) -> bool:
    count = len(requirement.get("values", ()))
    if requirement["operator"] in ("Exists", "DoesNotExist"):
        return count == 0
    return count == 1 if requirement["operator"] in ("Gt", "Lt") else count > 0
