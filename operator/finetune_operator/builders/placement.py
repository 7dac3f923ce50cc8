"""Where the pods of one attempt go together: gang scheduling by the scheduler's name, and one topology domain for all.

What each scheduler wants was read in its sources (ADR 16). Volcano makes the group itself, from an annotation of the
Job. Coscheduling wants a PodGroup beside it, which the operator creates. KAI groups pods by their top owner's kind and
does not know ours: it gets the name alone, and places the pods one by one.
"""

from __future__ import annotations

from finetune_operator.api import constants as c
from finetune_operator.api.job import FineTuneJobSpec
from finetune_operator.api.views import JobView
from finetune_operator.builders.pod import Manifest

VOLCANO = "volcano"
COSCHEDULING = ("scheduler-plugins-scheduler", "coscheduling")
"""The name in the chart of scheduler-plugins, and that of its documentation's examples."""
_POD_GROUP_LABEL = "scheduling.x-k8s.io/pod-group"


def job_annotations(spec: FineTuneJobSpec) -> dict[str, str]:
    """Return the annotations of the training Job from which Volcano makes the group of its pods."""
    if spec.scheduling.scheduler_name != VOLCANO or spec.resources.nodes == 1:
        return {}
    return {"scheduling.volcano.sh/group-min-member": str(spec.resources.nodes)}


def pod_labels(spec: FineTuneJobSpec, name: str) -> dict[str, str]:
    """Return the labels that put the training pods into the attempt's PodGroup."""
    return {_POD_GROUP_LABEL: name} if needs_pod_group(spec) else {}


def needs_pod_group(spec: FineTuneJobSpec) -> bool:
    """Whether a PodGroup has to be there before the pods: coscheduling refuses pods of a group that is not."""
    return spec.scheduling.scheduler_name in COSCHEDULING and spec.resources.nodes > 1


def build_pod_group(job: JobView, spec: FineTuneJobSpec, *, name: str, owner: Manifest) -> Manifest:
    """Return the PodGroup of an attempt, under the name of its batch Job."""
    return {
        "apiVersion": "scheduling.x-k8s.io/v1alpha1",
        "kind": "PodGroup",
        "metadata": {
            "name": name,
            "namespace": job.namespace,
            "labels": {c.LABEL_MANAGED_BY: c.MANAGER, c.LABEL_JOB: job.name, c.LABEL_JOB_UID: job.uid},
            "ownerReferences": [owner],
        },
        "spec": {"minMember": spec.resources.nodes},
    }


def topology_annotations(spec: FineTuneJobSpec) -> dict[str, str]:
    """Return the annotation of the pods by which Kueue places all of them in one domain."""
    key = _topology_key(spec)
    return {"kueue.x-k8s.io/podset-required-topology": key} if key and spec.scheduling.queue else {}


def topology_term(spec: FineTuneJobSpec, labels: dict[str, str]) -> Manifest | None:
    """Return the term of affinity to each other by which the scheduler does so, where there is no queue."""
    key = _topology_key(spec)
    if key is None or spec.scheduling.queue:
        return None
    own = {name: labels[name] for name in (c.LABEL_JOB_UID, c.LABEL_RUN, c.LABEL_ATTEMPT)}
    return {"labelSelector": {"matchLabels": own}, "topologyKey": key}


def _topology_key(spec: FineTuneJobSpec) -> str | None:
    return spec.scheduling.topology_key if spec.resources.nodes > 1 else None
