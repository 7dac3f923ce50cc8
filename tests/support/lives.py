"""A FineTuneJob in every phase, brought there by the operator's own decisions, as the API server would show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from finetune_contract.exit_codes import ExitCode
from finetune_operator.api import constants as c
from finetune_operator.api.conditions import Phase
from tests.support.builders import (
    Story,
    ended_pod,
    failed_child,
    make_child,
    make_pod,
    make_spec,
    make_workload,
    trained_message,
)

Body = dict[str, Any]


def body_of(story: Story) -> Body:
    """Return the object."""
    job = story.job
    return {
        "apiVersion": c.API_VERSION,
        "kind": c.JOB_KIND,
        "metadata": {"namespace": job.namespace, "name": job.name, "uid": job.uid, "generation": job.generation},
        "spec": job.spec,
        "status": job.status.to_wire(),
    }


def _waits_for_its_profile() -> Story:
    story = Story(make_spec(profile="none-such"))
    story.sees()
    return story


def _prepares() -> Story:
    story = Story()
    story.sees()
    return story


def _waits_in_its_queue() -> Story:
    story = Story(make_spec(scheduling={"queue": "tuning"}))
    child = replace(story.is_prepared(), suspended=True)
    story.sees(child, workload=make_workload(child))
    return story


def _starts() -> Story:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train, "Pending"),))
    return story


def _runs() -> Story:
    story = Story()
    train = story.is_prepared()
    story.sees(train, pods=(make_pod(train),))
    return story


def _restarts() -> Story:
    story = _runs()
    story.sees(failed_child("train", ExitCode.STORAGE_UNAVAILABLE))
    return story


def _is_told_to_suspend() -> Story:
    story = _runs()
    story.job = replace(story.job, spec=make_spec(lifecycle={"suspend": True}), generation=2)
    train = make_child("train")
    story.sees(train, pods=(make_pod(train),))
    return story


def _is_suspended() -> Story:
    story = _is_told_to_suspend()
    story.sees()
    return story


def _succeeds() -> Story:
    story = _runs()
    done = make_child("train", "complete")
    story.sees(done, pods=(ended_pod(done, exit_code=0, message=trained_message().encode()),))
    return story


def _fails() -> Story:
    story = Story()
    story.sees()
    story.sees(failed_child("prepare", ExitCode.DATASET_INVALID))
    return story


LIVES: dict[Phase, Callable[[], Story]] = {
    Phase.PENDING: _waits_for_its_profile,
    Phase.PREPARING: _prepares,
    Phase.QUEUED: _waits_in_its_queue,
    Phase.STARTING: _starts,
    Phase.RUNNING: _runs,
    Phase.RESTARTING: _restarts,
    Phase.SUSPENDING: _is_told_to_suspend,
    Phase.SUSPENDED: _is_suspended,
    Phase.SUCCEEDED: _succeeds,
    Phase.FAILED: _fails,
}
"""How a job comes into each phase."""
