"""Generated objects through the real API server and the operator: refused or told a reason, never a crash loop."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.jobs import RunningJob, make_manifest
from tests.support.schemas import WRONG, places, schema_of, values

SPEC = schema_of("finetunejobs")["properties"]["spec"]
PLACES = places(SPEC)
_LISTS = {"sources", "volumes", "env", "volumeMounts", "tolerations", "gates", "nodeSelectorTerms", "matchExpressions"}


def put(spec: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return the spec with a value at a place; what lies on the way there is made."""
    head, *rest = place
    if not rest:
        return {**spec, head: value}
    below = spec.get(head)
    inner = put(below if isinstance(below, dict) else {}, tuple(rest), value)
    return {**spec, head: [inner] if isinstance(below, list) or _is_list(place) else inner}


def _is_list(place: tuple[str, ...]) -> bool:
    return place[0] in _LISTS


def _at(place: tuple[str, ...]) -> dict[str, Any]:
    schema = SPEC
    for name in place:
        schema = schema.get("items", schema)["properties"][name]
    return schema


CHANGES = st.sampled_from(PLACES).flatmap(lambda place: st.tuples(st.just(place), WRONG | values(_at(place))))


def _examples(count: int) -> settings:
    checks = list(HealthCheck)
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=checks, database=None)


@pytest.fixture
def fed(cluster, namespace, proxy):
    """Post a job with some changes of its spec; return the answer's code and name."""
    made: list[str] = []

    def feed(changes: list[tuple[tuple[str, ...], Any]]) -> None:
        nowhere = {"nodeSelector": {"there": "is-none"}}  # what is taken is to be read, not run
        manifest = make_manifest(f"bot-{len(made)}", scheduling=nowhere)
        for place, value in changes:
            manifest["spec"] = put(manifest["spec"], place, value)
        path = f"/apis/finetuning.dev/v1alpha1/namespaces/{namespace}/finetunejobs?fieldValidation=Strict"
        code, answer = cluster.api.request("POST", path, manifest)
        assert code in (201, 400, 413, 422), (code, answer, changes)
        if code == 201:
            made.append(manifest["metadata"]["name"])

    feed.made = made
    return feed


@pytest.mark.long
@pytest.mark.parametrize("count", [400])
def test_any_spec_is_refused_or_gets_a_reason_and_no_bug_is_met(fed, start, operator, count) -> None:
    heard = operator.log.stat().st_size

    @_examples(count)
    @given(st.lists(CHANGES, min_size=1, max_size=3))
    def feed(changes) -> None:
        fed(changes)

    feed()
    assert len(fed.made) > count / 20
    job = start(name="good")
    job.reaches("Succeeded", seconds=120)
    job.until(lambda: _without_a_reason(job) == [], what="reason for each")
    said = operator.log.read_bytes()[heard:].decode(errors="replace")
    assert "a bug" not in said
    assert "cannot read" not in said
    job.kubectl("delete", "ftj", "--all", "--wait=false")


def _without_a_reason(job: RunningJob) -> list[str]:
    found = json.loads(job.kubectl("get", "ftj", "-o", "json"))["items"]
    return [item["metadata"]["name"] for item in found if not item.get("status", {}).get("conditions")]
