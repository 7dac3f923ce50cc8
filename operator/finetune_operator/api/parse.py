"""From the API's JSON to views: total functions, since what is watched may be anything."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from sys import intern
from typing import Any, Literal

from finetune_operator.api import constants as c
from finetune_operator.api.profile import FineTuneProfileSpec
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import ChildJob, ContainerView, GpuNode, JobView, PodView, ProfileView, WorkloadView

Body = dict[str, Any]


def parse_job(body: Body) -> JobView:
    """Return a FineTuneJob. Fields of status that this version does not know are ignored."""
    meta = body["metadata"]
    return JobView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        resource_version=meta["resourceVersion"],
        deleting="deletionTimestamp" in meta,
        spec=body.get("spec") or {},
        status=FineTuneJobStatus.model_validate(body.get("status") or {}, extra="ignore"),
        rerun=(meta.get("annotations") or {}).get(c.ANNOTATION_RERUN),
    )


def parse_profile(body: Body) -> ProfileView:
    """Return a FineTuneProfile."""
    meta = body["metadata"]
    return ProfileView(
        name=meta["name"],
        generation=meta.get("generation", 0),
        is_default=(meta.get("annotations") or {}).get(c.ANNOTATION_DEFAULT_PROFILE) == "true",
        spec=FineTuneProfileSpec.model_validate(body.get("spec") or {}, extra="ignore"),
    )


def parse_child(body: Body) -> ChildJob | None:
    """Return a batch Job of ours, or None if no FineTuneJob controls it.

    Which attempt it is stands in its pod template, that nobody can change, and not in labels that anybody can.
    """
    meta, template = body["metadata"], body["spec"].get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    owner = _controller(meta)
    if owner is None or owner["kind"] != c.JOB_KIND or c.LABEL_STAGE not in labels:
        return None
    failed = _condition(body, "Failed")
    return ChildJob(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        owner_uid=owner["uid"],
        stage="prepare" if labels[c.LABEL_STAGE] == "prepare" else "train",
        run=_int(labels.get(c.LABEL_RUN)),
        attempt=_int(labels.get(c.LABEL_ATTEMPT)),
        state=_job_state(body),
        deleting="deletionTimestamp" in meta,
        failure_reason=failed.get("reason", ""),
        failure_message=failed.get("message", ""),
        created_at=parse_time(meta.get("creationTimestamp")),
        suspended=(body.get("spec") or {}).get("suspend") is True,
        queue_priority=(meta.get("labels") or {}).get(c.LABEL_QUEUE_PRIORITY),
    )


def parse_pod(body: Body) -> PodView | None:
    """Return a pod of ours, or None if it carries no label of ours."""
    meta, status, spec = body["metadata"], body.get("status") or {}, body.get("spec") or {}
    labels = meta.get("labels") or {}
    owner = _controller(meta)
    if c.LABEL_JOB_UID not in labels or owner is None:
        return None
    disruption, scheduled = _condition(body, "DisruptionTarget"), _condition(body, "PodScheduled", "False")
    return PodView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        owner_uid=labels[c.LABEL_JOB_UID],
        child=owner["name"],
        phase=status.get("phase", "Pending"),
        ready=bool(_condition(body, "Ready")),
        containers=tuple(_containers(status)),
        unschedulable=scheduled.get("message", "") if scheduled.get("reason") == "Unschedulable" else "",
        disruption=disruption.get("reason", ""),
        deleted_at=parse_time(meta.get("deletionTimestamp")),
        disrupted_at=parse_time(disruption.get("lastTransitionTime")),
        grace_seconds=spec.get("terminationGracePeriodSeconds", 30),
    )


def parse_workload(body: Body) -> WorkloadView | None:
    """Return Kueue's Workload of a batch Job, or None if it is of another kind."""
    meta = body["metadata"]
    owner = _controller(meta)
    if owner is None or owner["kind"] != "Job":
        return None
    reserved, waits = _condition(body, "QuotaReserved"), _condition(body, "QuotaReserved", "False")
    evicted = _condition(body, "Evicted")
    return WorkloadView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        child_uid=owner["uid"],
        reserved=bool(reserved),
        reason=(reserved or waits).get("reason", ""),
        message=(reserved or waits).get("message", ""),
        admitted=bool(_condition(body, "Admitted")),
        checks=_condition(body, "Admitted", "False").get("message", ""),
        evicted=evicted.get("reason", ""),
        evicted_message=evicted.get("message", ""),
    )


def parse_gpu_node(body: Body) -> GpuNode:
    """Return a node. Its labels are shared with other nodes', of which most are the same."""
    labels = body["metadata"].get("labels") or {}
    return GpuNode(body["metadata"]["name"], {intern(key): intern(value) for key, value in labels.items()})


def parse_time(text: str | None) -> datetime | None:
    """Return an RFC 3339 time; None where there is none, or something else."""
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return time if time and time.tzinfo else None


def later(time: datetime, seconds: float) -> datetime:
    """Return the time so many seconds later; the end of all time where a status says nonsense."""
    try:
        return time + timedelta(seconds=seconds)
    except OverflowError:
        return (datetime.max if seconds > 0 else datetime.min).replace(tzinfo=UTC)


def format_time(time: datetime) -> str:
    """Return RFC 3339 in UTC, to the second, as the API server writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _controller(meta: Body) -> Body | None:
    owners = meta.get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def _condition(body: Body, kind: str, status: str = "True") -> Body:
    conditions = (body.get("status") or {}).get("conditions") or []
    return next((item for item in conditions if item["type"] == kind and item["status"] == status), {})


def _job_state(body: Body) -> Literal["active", "complete", "failed"]:
    if _condition(body, "Complete"):
        return "complete"
    return "failed" if _condition(body, "Failed") else "active"


def _containers(status: Body) -> list[ContainerView]:
    listed = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return [_container(item) for item in listed]


def _container(item: Body) -> ContainerView:
    state = item.get("state") or {}
    if "terminated" in state:
        end = state["terminated"]
        return ContainerView(
            item["name"], "terminated", end.get("reason", ""), end.get("message", ""), end.get("exitCode")
        )
    if "running" in state:
        return ContainerView(item["name"], "running")
    waiting = state.get("waiting") or {}
    return ContainerView(item["name"], "waiting", waiting.get("reason", ""), waiting.get("message", ""))


def _int(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
