"""Whatever the API server stores, the operator reads and decides: a status edited by hand, times that make no sense."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_operator.api.parse import parse_job
from finetune_operator.api.views import View
from finetune_operator.policy.decide import decide
from tests.support.builders import NOW, SETTINGS, make_child, make_pod, make_spec
from tests.support.schemas import schema_of, values

SCHEMA = schema_of("finetunejobs")["properties"]
STATUS = values(SCHEMA["status"])
LIFECYCLE = values(SCHEMA["spec"]["properties"]["lifecycle"])
quickly = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def decided(status: Any, lifecycle: Any, *, child: bool, now: datetime = NOW) -> None:
    """Read a stored job and decide, with or without its Job there."""
    meta = {"namespace": "team", "name": "bot", "uid": "0f9c2d4e-1111", "resourceVersion": "1", "generation": 2}
    job = parse_job({"metadata": meta, "spec": make_spec(lifecycle=lifecycle), "status": status})
    children = (make_child("train", owner_uid=job.uid),) if child else ()
    pods = tuple(make_pod(one, owner_uid=job.uid) for one in children)
    plan = decide(View(job=job, children=children, pods=pods), now, SETTINGS)
    if plan.status is not None:
        plan.status.to_json().encode()


@quickly
@given(STATUS, LIFECYCLE, st.booleans())
def test_any_status_that_the_schema_allows_is_decided_on(status, lifecycle, child) -> None:
    decided(status, lifecycle, child=child)


@quickly
@given(STATUS, st.sampled_from((1, 1970, 2025, 2027, 9999)))
def test_a_clock_that_is_wrong_by_ages_is_no_reason_to_fail(status, year) -> None:
    decided(
        status,
        {"activeDeadlineSeconds": 60, "startDeadlineSeconds": 60},
        child=True,
        now=datetime(year, 1, 2, tzinfo=UTC),
    )
