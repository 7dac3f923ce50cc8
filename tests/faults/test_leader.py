"""Two replicas, each behind a proxy that knows what it writes: one acts, the other takes over, nothing is doubled."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from dev.cluster.local import LocalCluster
from dev.operator import NAMESPACE, LocalOperator
from tests.support.api_proxy import ApiProxy
from tests.support.jobs import RunningJob

PORT = 18443


class Replica:
    """An operator, its proxy, and an address of its own, as a pod has."""

    def __init__(self, cluster: LocalCluster, number: int) -> None:
        self.proxy = ApiProxy(cluster)
        self._cluster, self._number = cluster, number

    def __enter__(self) -> Replica:
        self.proxy.__enter__()
        self.operator = LocalOperator(
            self._cluster,
            name=f"replica-{self._number}",
            server=self.proxy.server,
            pod_ip=f"198.18.0.{self._number}",  # reached at 127.18.0.x: dev.cluster.node.addresses
            status_bind=f"127.18.0.{self._number}:{PORT}",
            status_url=f"https://finetune-operator.{NAMESPACE}.svc:{PORT}",
            progress_seconds="0.5",
        )
        self.operator.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.operator.stop()
        self.proxy.__exit__(*args)

    def writes_after(self, moment: float) -> list[float]:
        """When it wrote, from then on."""
        return [at for at in self.proxy.at if at > moment]


@pytest.fixture(scope="module")
def pair(cluster: LocalCluster) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Replica(cluster, number)) for number in (2, 3)]


@pytest.fixture
def replicas(pair: list[Replica], cluster: LocalCluster) -> tuple[Replica, Replica]:
    """The one that leads, and the one that waits."""
    for replica in pair:
        replica.proxy.forget()
        if not replica.operator.is_running():
            replica.operator.start()
    wait_for(lambda: holder(cluster) in ("replica-2", "replica-3"), "a leader")
    leads = [replica for replica in pair if replica.operator.name == holder(cluster)]
    return leads[0], next(replica for replica in pair if replica is not leads[0])


def holder(cluster: LocalCluster) -> str:
    """Who has the Lease."""
    found = cluster.kubectl("get", "lease", "finetune-operator", "-n", NAMESPACE, "-o", "json", "--ignore-not-found")
    return str(json.loads(found)["spec"].get("holderIdentity", "")) if found else ""


def wait_for(holds, what: str, *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.1)


def test_one_acts_and_when_it_is_killed_the_other_does_within_fifteen_seconds(
    replicas, start, record_testsuite_property
) -> None:
    leader, follower = replicas
    job = start("prepare=nap")
    job.reaches("Preparing")
    assert leader.proxy.writes != []
    assert follower.proxy.writes == []
    leader.operator.kill()
    killed = time.monotonic()
    wait_for(lambda: follower.proxy.at, "write of the follower")
    record_testsuite_property("seconds until the other writes", follower.proxy.at[0] - killed)
    assert follower.proxy.at[0] - killed < 15
    assert job.reaches("Succeeded")["attempt"] == 1
    assert job.doubled() == []


def test_a_leader_that_ends_is_followed_at_once_and_writes_nothing_after_it_gave_the_lease_back(
    replicas, start, cluster, record_testsuite_property
) -> None:
    leader, follower = replicas
    job = start()
    job.until(lambda: leader.proxy.writes, what="first write")
    told = time.monotonic()
    leader.operator.stop()
    wait_for(lambda: holder(cluster) == follower.operator.name, "new leader", seconds=5)
    taken = time.monotonic()
    record_testsuite_property("seconds until the other holds the lease", taken - told)
    assert taken - told < 5
    assert job.reaches("Succeeded")["attempt"] == 1
    assert job.doubled() == []
    assert leader.writes_after(taken) == []


@pytest.mark.long
def test_posts_follow_the_leader(replicas, start, cluster) -> None:
    leader, follower = replicas
    for number, replica in enumerate((leader, follower)):
        wait_for(lambda replica=replica: holder(cluster) == replica.operator.name, "leader")
        job = start("train=post", name=f"bot-{number}")
        job.until(lambda job=job: job.status.get("progress", {}).get("step") == 7, what="progress")
        job.delete("--wait=false")
        leader.operator.stop()


@pytest.mark.long
def test_a_leader_that_was_frozen_writes_nothing_when_it_wakes_up(replicas, start, cluster) -> None:
    leader, follower = replicas
    job = start("prepare=nap", name="frozen")
    job.reaches("Preparing")
    os.kill(leader.operator.pid, signal.SIGSTOP)
    frozen = time.monotonic()
    wait_for(lambda: holder(cluster) == follower.operator.name, "new leader")
    assert job.reaches("Succeeded")["attempt"] == 1
    os.kill(leader.operator.pid, signal.SIGCONT)
    start(name="later").reaches("Succeeded")
    assert leader.writes_after(frozen) == []
    assert job.doubled() == []


@pytest.mark.long
def test_a_leader_that_is_cut_off_stops_and_comes_back_as_a_follower(replicas, start, cluster) -> None:
    leader, follower = replicas
    start(name="first").reaches("Succeeded")
    pid = leader.operator.pid
    leader.proxy.is_down = True
    leader.proxy.cut_watches()
    cut = time.monotonic()
    job = start(name="second")
    job.reaches("Succeeded")
    assert follower.proxy.at[0] - cut < 15
    leader.proxy.is_down = False
    start(name="third").reaches("Succeeded")
    assert leader.writes_after(cut) == []
    assert (leader.operator.pid, leader.operator.is_healthy()) == (pid, True)
    follower.operator.stop()
    again: RunningJob = start(name="fourth")
    again.reaches("Succeeded")
    assert leader.writes_after(cut) != []
