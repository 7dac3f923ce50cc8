"""A new run of the same job: its spec has changed and lifecycle.onSpecChange says Rerun, or somebody asks for one.

A run is a counter, not a hash: A, B and A again are three (job-traps 4). Outputs lie under run-<n>, so that those of
earlier runs stay. Whatever still works for an earlier run is deleted, and nothing begins before its pods are gone.
"""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.api.job import OnSpecChange
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import JobView, View
from finetune_operator.policy.effective import Effective, Problem


def may_be_wanted(view: View) -> bool:
    """Whether a job that has ended has to be looked at: of ten thousand ended ones no spec is parsed for nothing."""
    job = view.job
    return job.generation != job.status.observed_generation or _is_asked_for(job)


def is_wanted(view: View, effective: Effective | Problem) -> bool:
    """Whether a run that has begun is not the one that is asked for."""
    job, begun = view.job, view.job.status.resolved
    if begun is None:
        return False
    if _is_asked_for(job):
        return True
    if isinstance(effective, Problem) or effective.spec.lifecycle.on_spec_change is not OnSpecChange.RERUN:
        return False
    return effective.config_hash != begun.config_hash


def _is_asked_for(job: JobView) -> bool:
    return job.rerun is not None and job.rerun != job.status.rerun


def forget_run(view: View) -> View:
    """Return the job as if nothing had been done but the runs that there were."""
    status = FineTuneJobStatus(run=last_run(view), rerun=view.job.rerun)
    return replace(view, job=replace(view.job, status=status), report=None)


def last_run(view: View) -> int:
    """Return the number of the newest run, 0 if there was none: by the status, or by Jobs if that was lost."""
    return max((view.job.status.run or 0, *(child.run for child in view.children)))


def left_over(view: View, status: FineTuneJobStatus) -> tuple[str, ...]:
    """Return the Jobs that still work for an attempt or run before the status' own."""
    current = (status.run or 0, status.attempt) if status.attempt is not None else ((status.run or 0) + 1, 0)
    return tuple(
        child.name
        for child in view.children
        if child.state == "active" and not child.deleting and (child.run, child.attempt) < current
    )
