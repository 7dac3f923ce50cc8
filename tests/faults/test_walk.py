"""The random walk on the real control plane: users, nodes and faults as a seed has them, and the same promises.

Far fewer steps than in memory (tests/unit/test_walk.py), but with a real Job controller, real watches and a real node.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from dev.cluster.local import KubectlError
from tests.support.api_proxy import Fault
from tests.support.jobs import RunningJob

SCRIPTS = (
    "",
    "train=nap",
    "prepare=nap",
    "train=once-40",
    "prepare=once-50",
    "train=once-60",
    "train=exit-12",
    "train=silent",
)
RETRIES = 3
STEPS = 40


class Walk:
    """Some jobs, and what may happen to them and to the operator."""

    def __init__(self, seed: int, *, proxy: Any, operator: Any, jobs: list[RunningJob]) -> None:
        self.chance = random.Random(seed)  # noqa: S311
        self.proxy, self.operator, self.jobs = proxy, operator, jobs
        self.took: list[str] = []

    def step(self) -> None:
        """Do one thing, and look."""
        deeds: list[Callable[[RunningJob], None]] = [
            self.nothing, self.nothing, self.nothing, self.kill, self.cut, self.fail, self.fail, self.hold,
            self.delete_pod, self.delete_child, self.suspend, self.resume, self.rerun, self.be_away,
        ]  # fmt: skip
        deed, job = self.chance.choice(deeds), self.chance.choice(self.jobs)
        self.took.append(f"{deed.__name__} {job.name}")
        try:
            deed(job)
        except KubectlError as error:  # gone meanwhile
            if "not found" not in str(error):
                raise
        time.sleep(self.chance.uniform(0, 1.5))
        self.look()

    def nothing(self, _job: RunningJob) -> None:
        pass

    def kill(self, _job: RunningJob) -> None:
        self.operator.kill()
        self.operator.start()

    def cut(self, _job: RunningJob) -> None:
        self.proxy.cut_watches()

    def hold(self, _job: RunningJob) -> None:
        self.proxy.holds_events = not self.proxy.holds_events

    def be_away(self, _job: RunningJob) -> None:
        self.proxy.down_for(self.chance.uniform(0, 3))

    def fail(self, _job: RunningJob) -> None:
        code, after = self.chance.choice((409, 429, 500, 504)), self.chance.random() < 0.5
        self.proxy.faults.append(Fault(code, method=self.chance.choice(("PATCH", "POST", "DELETE")), after=after))

    def delete_pod(self, job: RunningJob) -> None:
        if pods := job.children("pods"):
            job.kubectl("delete", "pod", self.chance.choice(pods)["metadata"]["name"], "--wait=false")

    def delete_child(self, job: RunningJob) -> None:
        if jobs := job.children():
            job.kubectl("delete", "job", self.chance.choice(jobs)["metadata"]["name"], "--wait=false")

    def suspend(self, job: RunningJob) -> None:
        job.patch(lifecycle={"suspend": True})

    def resume(self, job: RunningJob) -> None:
        job.patch(lifecycle={"suspend": False})

    def rerun(self, job: RunningJob) -> None:
        job.kubectl("annotate", "ftj", job.name, f"finetuning.dev/rerun={self.chance.random()}", "--overwrite")

    def look(self) -> None:
        """What holds at every moment."""
        for job in self.jobs:
            living = [pod for pod in job.children("pods") if pod["status"]["phase"] in ("Pending", "Running")]
            attempts = {pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] for pod in living}
            assert len(attempts) <= 1, f"two attempts at once: {attempts}"
            status = job.status
            assert status.get("restarts", {}).get("failures", 0) <= RETRIES
            if status.get("phase") == "Succeeded":
                assert status["outputs"]["manifestSha256"] == "c" * 64

    def settle(self) -> None:
        """Let everything go well from here on."""
        self.proxy.forget()
        for job in self.jobs:
            self.resume(job)
        for job in self.jobs:
            job.until(lambda job=job: job.status.get("phase") in ("Succeeded", "Failed"), what="end", seconds=180)
        self.look()


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_random_walk(start, proxy, operator, seed) -> None:
    heard = operator.log.stat().st_size
    lifecycle = {"gracePeriodSeconds": 2, "retries": {"max": RETRIES, "backoffSeconds": 0}}
    chance = random.Random(seed)  # noqa: S311
    jobs = [start(chance.choice(SCRIPTS), name=f"bot-{number}", lifecycle=lifecycle) for number in range(4)]
    walk = Walk(seed, proxy=proxy, operator=operator, jobs=jobs)
    try:
        for _ in range(STEPS):
            walk.step()
        walk.settle()
    except AssertionError as error:
        raise AssertionError(f"{error}\nafter {walk.took}") from error
    said = operator.log.read_bytes()[heard:].decode(errors="replace")
    assert "a bug" not in said
    for job in jobs:
        job.delete("--wait=false")
    for job in jobs:
        job.until(lambda job=job: not json.loads(left(job))["items"], what="end of what was its own")


def left(job: RunningJob) -> str:
    """Return what is left of a job, as a List."""
    return job.kubectl("get", "ftj,jobs,pods,services", "-l", f"finetuning.dev/job={job.name}", "-o", "json")
