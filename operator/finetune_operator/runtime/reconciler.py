"""One reconcile: observe, decide, act. The order of effects is what makes each of them safe to lose.

Status first, locked by resourceVersion; then deletions and the new Job; Events last, and only for what is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from finetune_operator.api.parse import parse_child, parse_pod
from finetune_operator.api.report import ProgressReport
from finetune_operator.api.views import ChildJob, JobView, Key, View
from finetune_operator.builders.job import build_job, owner_reference
from finetune_operator.builders.placement import build_pod_group, needs_pod_group
from finetune_operator.builders.service import build_service
from finetune_operator.policy import waiting
from finetune_operator.policy.decide import PolicySettings, current_child, decide, denied, is_terminal, refused
from finetune_operator.policy.plan import Plan
from finetune_operator.policy.progress import pace
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.gateway import ConflictError, DeniedError, Gateway, RejectedError
from finetune_operator.runtime.observer import Nobody, Observer
from finetune_operator.runtime.patch import merge_patch

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wiring:
    """How pods reach the status server."""

    progress_url: Callable[[JobView], str]
    """The full URL that pods of a job post to."""
    progress_ca: Callable[[], str]
    """The CA that signed the server's certificate, as PEM."""
    otlp_endpoint: str = ""
    """Where pods send traces; nowhere when empty."""


class Reconciler:
    """Carries out decisions about one job at a time."""

    def __init__(
        self,
        *,
        cache: Cache,
        gateway: Gateway,
        settings: PolicySettings,
        wiring: Wiring,
        latest: Callable[[str], ProgressReport | None],
        clock: Callable[[], datetime],
        posting: Callable[[datetime], int] = lambda _: 0,
        observer: Observer | None = None,
    ) -> None:
        """`posting` tells how many jobs post progress now: the more, the less often each is written."""
        self._posting = posting
        self._cache, self._gateway, self._settings = cache, gateway, settings
        self._wiring, self._latest, self._clock = wiring, latest, clock
        self._observer = observer or Nobody()

    async def reconcile(self, key: Key) -> float | None:
        """Bring a job one step further; return the seconds after which to look again. Raises ApiError."""
        view = await self._observe(key)
        if view is None:
            return None
        plan = self._decide(view)
        if _needs_pods_as_they_are(view, plan, current_child(view, self._clock())):
            view = await self._with_pods(view)
            plan = self._decide(view)
        return await self._act(view, plan)

    def _decide(self, view: View) -> Plan:
        now = self._clock()
        seconds = pace(self._settings.progress_seconds, jobs=self._posting(now))
        return decide(view, now, replace(self._settings, progress_seconds=seconds))

    async def _observe(self, key: Key) -> View | None:
        job = self._cache.job(key)
        if job is None:
            return None
        await self._look_twice(job)
        view = self._cache.snapshot(key, self._latest(job.uid))
        return await self._with_what_only_events_tell(view) if view else None

    async def _with_what_only_events_tell(self, view: View) -> View:
        """A Job whose pods nobody takes looks like one whose pods are about to come, and so does a missing volume."""
        now = self._clock()
        for child in view.children:
            if waiting.is_podless(child, view.pods, now):
                return replace(view, refused_pods=await self._gateway.refusal_of_pods(child))
            if pod := waiting.may_lack_volumes(child, view.pods, now):
                return replace(view, mount_failure=await self._gateway.mount_failure_of(pod))
        return view

    async def _look_twice(self, job: JobView) -> None:
        """Before a Job counts as missing, ask the API: the cache may lag behind our own creation."""
        seen, status = job.status.job, job.status
        if seen is None or is_terminal(status) or self._cache.children.get(seen.uid) is not None:
            return
        body = await self._gateway.get_job(job.namespace, seen.name)
        child = parse_child(body) if body else None
        if body and child and child.uid == seen.uid:
            self._cache.put_child(child, body["metadata"]["resourceVersion"])

    async def _with_pods(self, view: View) -> View:
        """Return the view with its pods as the API server has them: two watches are never equally far."""
        bodies = await self._gateway.pods_of(view.job)
        pods = {pod.uid: (pod, body) for body in bodies if (pod := parse_pod(body))}
        for pod, body in pods.values():
            self._cache.put_pod(pod, body["metadata"]["resourceVersion"])
        for known in view.pods:
            if known.uid not in pods:
                self._cache.drop_pod(known.uid)
        return self._cache.snapshot(view.job.key, self._latest(view.job.uid)) or view

    async def _act(self, view: View, plan: Plan) -> float | None:
        job = view.job
        if plan.status is not None:
            written = await self._write_status(job, plan)
            if written is None:
                return None
            job = written
        if plan.delete_self:
            await self._gateway.delete_finetunejob(job)
            return None
        for child in view.children:
            if child.name in plan.delete:
                await self._gateway.delete_job(job.namespace, child.name, uid=child.uid)
        if plan.create:
            await self._create_or_say_why_not(job, plan)
        await self._announce(job, plan)
        return plan.requeue_after

    async def _announce(self, job: JobView, plan: Plan) -> None:
        for event in plan.events:
            await self._gateway.emit_event(job, event)

    async def _create_or_say_why_not(self, job: JobView, plan: Plan) -> None:
        """A quota that refuses the Job is the user's to see; the queue's backoff asks again."""
        try:
            await self._create(job, plan)
        except RejectedError as error:
            by_policy = plan.effective if isinstance(error, DeniedError) else None
            now, said = self._clock(), str(error)
            told = denied(job, by_policy, now, said) if by_policy else refused(job, now, said)
            if told.status is not None and (written := await self._write_status(job, told)):
                await self._announce(written, told)
            raise

    async def _write_status(self, job: JobView, plan: Plan) -> JobView | None:
        assert plan.status is not None  # noqa: S101 - the caller has looked
        patch = merge_patch(job.status.to_wire(), plan.status.to_wire())
        version = await self._gateway.write_status(job, patch)
        if version is None:  # deleted, and the watch has not said so yet
            self._cache.drop_job(job.uid)
            return None
        # The lock says that nothing else has changed: the object need not be sent back and read.
        written = replace(job, resource_version=version, status=plan.status)
        self._cache.put_job(written)
        self._observer.wrote(job, plan.status)
        if plan.status.phase != job.status.phase:
            log.info("%s/%s: %s", *job.key, plan.status.phase, extra=_about(written))
        return written

    async def _create(self, job: JobView, plan: Plan) -> None:
        request, effective = plan.create, plan.effective
        if request is None or effective is None:
            return
        manifest = build_job(
            job,
            effective.spec,
            effective.profile_spec,
            stage=request.stage,
            run=request.run,
            attempt=request.attempt,
            image=effective.image,
            collect=request.collect,
            progress_url=self._wiring.progress_url(job),
            progress_ca=self._wiring.progress_ca(),
            otlp_endpoint=self._wiring.otlp_endpoint,
        )
        if manifest["spec"]["completions"] > 1:
            # First the Service: pods look for each other by its names.
            await self._gateway.create_service(build_service(job))
        if manifest["spec"]["completions"] > 1 and needs_pod_group(effective.spec):
            name = manifest["metadata"]["name"]
            group = build_pod_group(job, effective.spec, name=name, owner=owner_reference(job))
            await self._gateway.create_pod_group(group)
        try:
            # Of no version: what admission has made of it, as suspended, the watch tells.
            body, version = await self._gateway.create_job(manifest), ""
        except ConflictError:
            body = await self._existing(job, manifest["metadata"]["name"])
            version = body["metadata"]["resourceVersion"]
        child = parse_child(body)
        if child:
            self._cache.put_child(child, version)
        log.info("created job %s/%s", job.namespace, manifest["metadata"]["name"], extra=_about(job))

    async def _existing(self, job: JobView, name: str) -> dict[str, Any]:
        """The name is taken: by our own lost creation, or by somebody else's Job, which is never touched."""
        body = await self._gateway.get_job(job.namespace, name)
        child = parse_child(body) if body else None
        if body is None or child is None or child.owner_uid != job.uid:
            raise RejectedError(f"the name {name} is taken by a Job that is not this FineTuneJob's")
        return body


def _needs_pods_as_they_are(view: View, plan: Plan, child: ChildJob | None) -> bool:
    """Whether a decision rests on pods that the cache may not know yet: how a Job has ended, or that none is left.

    A run that just begins has no pods, and ordinarily a pod's end is seen before its Job's: then nothing is asked.
    """
    if plan.create is not None and view.job.status.run is not None:
        return True
    if plan.status is None or child is None or child.state == "active":
        return False
    pods = [pod for pod in view.pods if pod.child == child.name]
    return not pods or not all(pod.is_terminal for pod in pods)


def _about(job: JobView) -> dict[str, object]:
    """Return what a log line says about a job in fields of its own."""
    status = job.status
    about = {"job": f"{job.namespace}/{job.name}", "run": status.run, "attempt": status.attempt, "phase": status.phase}
    return {name: value for name, value in about.items() if value is not None}
