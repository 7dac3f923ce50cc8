"""What the loop needs of the Kubernetes API: a few methods over plain JSON. `kube.gateway` implements it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

from finetune_operator.api.views import ChildJob, JobView, PodView
from finetune_operator.policy.plan import EventRequest

Body = dict[str, Any]
Kind = Literal["FineTuneJob", "FineTuneProfile", "Job", "Pod", "Workload", "Node"]


class ApiError(Exception):
    """The API server did not do what was asked."""


class ConflictError(ApiError):
    """Somebody else wrote first (409): decide again on what is there now."""


class RejectedError(ApiError):
    """The request itself is refused (400, 403, 404, 422): trying again changes nothing soon."""


class DeniedError(RejectedError):
    """An admission policy or webhook does not take the object as it is: it will not, whatever time passes."""


class TransientError(ApiError):
    """Too many requests, a server error or no connection: try again later."""

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        """`retry_after`: the seconds that the API server wants to be left alone for."""
        super().__init__(message)
        self.retry_after = retry_after


class NotLeadingError(ApiError):
    """Another replica may lead by now: nothing is written."""


class Gateway(Protocol):
    """The Kubernetes API, as far as the loop needs it. Every method raises ApiError."""

    def list(self, kind: Kind) -> AsyncIterator[Body]:
        """Yield all objects of a kind that concern this operator, page by page; none of a kind that is not served.
        Nodes come as metadata alone, and only those with labelled GPUs.
        """

    async def serves_kueue(self) -> bool:
        """Whether the cluster serves Kueue's API."""

    def watch_workloads(self) -> AsyncIterator[tuple[str, Body]]:
        """Yield what happens to Kueue's Workloads, first those that are there: ADDED, MODIFIED or DELETED, and the
        object. Ends now and then, and at once where no Kueue is served.
        """

    async def get_job(self, namespace: str, name: str) -> Body | None:
        """Return a batch Job, or None."""

    async def pods_of(self, job: JobView) -> tuple[Body, ...]:
        """Return the pods of a FineTuneJob, as the API server has them now."""

    async def create_job(self, manifest: Body) -> Body:
        """Create a batch Job; return it as sent, with the API server's metadata. Raises ConflictError if the name is
        taken.
        """

    async def create_service(self, manifest: Body) -> None:
        """Create a Service; one of that name is taken for it. Raises RejectedError."""

    async def create_pod_group(self, manifest: Body) -> None:
        """Create coscheduling's PodGroup; one of that name is taken for it. Raises RejectedError."""

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        """Delete a batch Job and its pods in the background; nothing there, or another of its name, is no error."""

    async def delete_finetunejob(self, job: JobView) -> None:
        """Delete a FineTuneJob, unless it is another one by now."""

    async def refusal_of_pods(self, child: ChildJob) -> str:
        """Return why the API server takes no pods of a Job, in its words; nothing if nobody has said so."""

    async def mount_failure_of(self, pod: PodView) -> str:
        """Return why a pod gets no volumes, in the kubelet's words; nothing if nobody has said so."""

    async def write_status(self, job: JobView, patch: Body) -> str | None:
        """Merge a patch into the status, if the object still has the view's resourceVersion; return the new one.

        None if it is gone. Raises ConflictError.
        """

    async def emit_event(self, job: JobView, event: EventRequest) -> None:
        """Record an Event about the job."""
