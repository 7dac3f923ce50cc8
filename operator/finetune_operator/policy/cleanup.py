"""What is left of a job that has ended: Jobs that still work end at once, the rest when its time has come."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.api.parse import parse_time
from finetune_operator.api.views import JobView, View
from finetune_operator.policy.plan import Plan


def after_end(view: View, now: datetime) -> Plan:
    """Return what to do about a job that has ended: delete, or look again later."""
    working = tuple(child.name for child in view.children if child.state == "active" and not child.deleting)
    if working:  # a deadline has passed, and the deletion was lost
        return Plan(delete=working)
    ended = parse_time(view.job.status.completion_time)
    if ended is None:
        return Plan()
    passed = (now - ended).total_seconds()
    waits = {name: ttl - passed for name in _TTLS if (ttl := _lifecycle(view.job).get(name)) is not None}
    if waits.get(_JOB, 1.0) <= 0:
        return Plan(delete_self=True)
    delete: tuple[str, ...] = ()
    if waits.get(_PODS, 1.0) <= 0:
        delete = tuple(child.name for child in view.children if not child.deleting)
    later = [wait for wait in waits.values() if wait > 0]
    return Plan(delete=delete, requeue_after=min(later) if later else None)


_JOB, _PODS = "ttlSecondsAfterFinished", "podTtlSecondsAfterFinished"
_TTLS = (_JOB, _PODS)


def _lifecycle(job: JobView) -> dict[str, Any]:
    """Return lifecycle as stored, over the profile's: of ten thousand ended jobs none is parsed for two numbers."""
    profile = job.status.resolved.profile if job.status.resolved else None
    defaults = (profile.spec.get("defaults") or {}).get("lifecycle") or {} if profile else {}
    return {**defaults, **(job.spec.get("lifecycle") or {})}
