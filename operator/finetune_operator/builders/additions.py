"""What podTemplate adds to the pods: the profile's, and over it the job's, name by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from finetune_contract.model import Model
from finetune_operator.api.pod_template import PodTemplate

Manifest = dict[str, object]


@dataclass(frozen=True, slots=True)
class Additions:
    """Parts of a pod's manifest that are not ours."""

    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    env: list[Manifest] = field(default_factory=list)
    volumes: list[Manifest] = field(default_factory=list)
    volume_mounts: list[Manifest] = field(default_factory=list)
    security_context: Manifest = field(default_factory=dict)
    image_pull_secrets: list[Manifest] = field(default_factory=list)


def additions(profile: PodTemplate, own: PodTemplate | None) -> Additions:
    """Return what a job's pods have beside what the operator gives them."""
    both = [template for template in (profile, own) if template]
    contexts = [template.security_context.to_wire() for template in both if template.security_context]
    return Additions(
        labels={key: value for template in both for key, value in (template.labels or {}).items()},
        annotations={key: value for template in both for key, value in (template.annotations or {}).items()},
        env=_by("name", (template.env for template in both)),
        volumes=_by("name", (template.volumes for template in both)),
        volume_mounts=_by("mountPath", (template.volume_mounts for template in both)),
        security_context={key: value for context in contexts for key, value in context.items()},
        image_pull_secrets=_by("name", (template.image_pull_secrets for template in both)),
    )


def _by(key: str, lists: Iterable[Iterable[Model] | None]) -> list[Manifest]:
    """Return all entries, of several with one key the last."""
    wires = [entry.to_wire() for entries in lists for entry in entries or ()]
    return list({str(wire[key]): wire for wire in wires}.values())
