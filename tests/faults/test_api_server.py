"""The API server as it may be: refusing, failing, slow, away; watches that break off, come late or too late."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.support.api_proxy import Fault

STATUS, JOBS, EVENTS = "/status", "/jobs", "/events"
REFUSALS = {
    "conflict": Fault(409, method="PATCH", path=STATUS, times=3),
    "too-many-with-retry-after": Fault(429, method="POST", path=JOBS, headers={"Retry-After": "2"}),
    "error": Fault(500, method="PATCH", path=STATUS, times=3),
    "unavailable": Fault(503, method="POST", path=JOBS, times=2),
    "unauthorized-once": Fault(401, method="PATCH", path=STATUS),
    "status-written-and-its-answer-lost": Fault(504, method="PATCH", path=STATUS, times=2, after=True),
    "job-created-and-its-answer-lost": Fault(504, method="POST", path=JOBS, times=2, after=True),
    "events-refused": Fault(403, method="POST", path=EVENTS, times=100),
}


def test_several_refusals_of_one_job_cost_time_and_nothing_else(start, proxy) -> None:
    """Few, since each failure in a row doubles the wait."""
    names = ("conflict", "status-written-and-its-answer-lost", "error", "job-created-and-its-answer-lost")
    proxy.faults = [replace(REFUSALS[name], times=1, met=0) for name in names]
    job = start()
    job.reaches("Succeeded")
    assert [fault.met for fault in proxy.faults] == [1] * len(proxy.faults)
    assert job.doubled() == []


@pytest.mark.long
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_costs_time_and_nothing_else(start, proxy, name) -> None:
    proxy.faults = [fault] = [replace(REFUSALS[name], met=0)]
    job = start()
    job.reaches("Succeeded")
    assert fault.met > 0
    assert job.doubled() == []


def test_the_api_server_is_left_alone_for_as_long_as_it_asks(start, proxy) -> None:
    proxy.faults = [Fault(429, method="POST", path=JOBS, headers={"Retry-After": "6"})]
    began = time.monotonic()
    job = start()
    job.until(lambda: len(job.children()) == 1, what="the Job")
    assert 5.5 < time.monotonic() - began < 15


@pytest.mark.parametrize("seconds", [4, pytest.param(120, marks=pytest.mark.long)])
def test_an_api_server_that_is_away_and_comes_back(start, proxy, operator, seconds) -> None:
    pid = operator.pid
    before, during = start(name="before"), start("train=nap", name="during")
    before.reaches("Succeeded")
    during.reaches("Running")
    proxy.down_for(seconds)
    after = start(name="after")
    assert [job.reaches("Succeeded", seconds=90)["attempt"] for job in (during, after)] == [1, 1]
    assert [job.doubled() for job in (before, during, after)] == [[], [], []]
    assert operator.pid == pid
    assert operator.is_healthy()


@pytest.mark.long
def test_an_api_server_that_is_slow(start, proxy, operator) -> None:
    proxy.delay = 1.5
    job = start()
    job.reaches("Succeeded", seconds=120)
    assert job.doubled() == []
    assert operator.is_healthy()


@pytest.mark.long
def test_watches_that_break_off_again_and_again(start, proxy) -> None:
    job = start("train=nap")
    deadline = time.monotonic() + 60
    while job.status.get("phase") != "Succeeded" and time.monotonic() < deadline:
        proxy.cut_watches()
        time.sleep(0.3)
    job.reaches("Succeeded", seconds=30)
    assert job.doubled() == []


@pytest.mark.long
def test_watches_whose_version_was_compacted_lose_no_deletion(start, proxy) -> None:
    gone, stays = start("train=run", name="gone"), start("train=run", name="stays")
    gone.reaches("Running")
    stays.reaches("Running")
    proxy.is_down = True
    proxy.cut_watches()
    gone.delete("--wait=false")
    stays.kubectl("delete", "job", stays.status["job"]["name"], "--wait=false")
    time.sleep(3)
    proxy.is_compacted, proxy.is_down = True, False
    time.sleep(3)
    proxy.is_compacted = False
    stays.until(lambda: stays.status.get("attempt") == 2 and stays.status.get("phase") == "Running", what="attempt 2")
    again = start(name="gone")  # under the same name: nothing of the first one is in its way
    again.reaches("Succeeded")


@pytest.mark.long
def test_a_cache_that_lags_behind_doubles_nothing(start, proxy) -> None:
    proxy.holds_events = True
    job = start("train=once-40")
    time.sleep(4)
    for _ in range(6):
        proxy.holds_events = False
        time.sleep(0.4)
        proxy.holds_events = True
        time.sleep(1.5)
    proxy.holds_events = False
    status = job.reaches("Succeeded")
    assert (status["attempt"], status["restarts"]) == (2, {"failures": 1, "disruptions": 0})
    assert len(job.children()) == 3
