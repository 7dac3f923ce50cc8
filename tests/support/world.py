"""A small cluster in memory for random walks: objects, watches that lag, a Job controller, a node, and an operator.

It knows the truth that the operator has to find out: which pods live, and which runs have written their manifest. What
is promised at every moment is asserted where it would be broken.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from finetune_contract.exit_codes import WITH_RESULT, ExitCode
from finetune_operator.api.parse import format_time, parse_job, parse_time
from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import JobView
from finetune_operator.policy.decide import is_terminal
from finetune_operator.runtime.cache import Cache
from finetune_operator.runtime.feed import Feed
from finetune_operator.runtime.gateway import ApiError, Kind
from finetune_operator.runtime.queue import WorkQueue
from finetune_operator.runtime.reconciler import Reconciler, Wiring
from tests.support.builders import NOW, SETTINGS, make_spec, prepared_message, trained_message
from tests.support.fake_gateway import Body, FakeGateway

KEY = ("team", "bot")
RETRIES = 2
GRACE = 30
STUCK = 60
_STAGE, _RUN, _ATTEMPT = "finetuning.dev/stage", "finetuning.dev/run", "finetuning.dev/attempt"


class OperatorDiedError(BaseException):
    """The process was killed: no handler of its own runs."""


class WorldGateway(FakeGateway):
    """The API with watches: every change is an event that has yet to be delivered. A fault may meet the next write."""

    def __init__(self) -> None:
        super().__init__()
        self.events_of: dict[Kind, list[tuple[str, Body]]] = {kind: [] for kind in self.objects}
        self.fault_before: BaseException | None = None
        self.fault_after: BaseException | None = None
        self.on_create: Callable[[Body], None] = lambda _manifest: None
        self.known: set[str] = set()
        """Names of the Jobs whose creation the operator has heard of since it was started."""

    def add(self, kind: Kind, body: Body) -> Body:
        """Store and tell."""
        stored = super().add(kind, body)
        self.events_of[kind].append(("MODIFIED", copy.deepcopy(stored)))
        return stored

    def remove(self, kind: Kind, key: tuple[str, str]) -> None:
        """Delete and tell."""
        body = self.objects[kind].pop(key, None)
        if body:
            self.events_of[kind].append(("DELETED", copy.deepcopy(body)))

    async def create_job(self, manifest: Body) -> Body:
        """Create, with faults."""
        self._strike("fault_before")
        self.on_create(manifest)
        created = await super().create_job(manifest)
        self._strike("fault_after")
        self.known.add(manifest["metadata"]["name"])
        return created

    async def delete_job(self, namespace: str, name: str, *, uid: str) -> None:
        """Delete, with faults; pods go by garbage collection."""
        self._strike("fault_before")
        found = self.objects["Job"].get((namespace, name))
        if found and found["metadata"]["uid"] == uid:
            self.remove("Job", (namespace, name))
        self._strike("fault_after")

    async def delete_finetunejob(self, job: JobView) -> None:
        """Delete, with faults."""
        self._strike("fault_before")
        self.remove("FineTuneJob", job.key)
        self._strike("fault_after")

    async def write_status(self, job: JobView, patch: Body) -> str | None:
        """Write, with faults."""
        self._strike("fault_before")
        written = await super().write_status(job, patch)
        self._strike("fault_after")
        return written

    def _strike(self, name: str) -> None:
        fault = getattr(self, name)
        setattr(self, name, None)
        if fault:
            raise fault


class World:
    """Everything at once, with a clock of its own."""

    def __init__(self) -> None:
        self.now = NOW
        self.gateway = WorldGateway()
        self.gateway.on_create = self._check_creation
        self.manifests: set[tuple[str, int]] = set()
        """uid and run of each run that has written its manifest."""
        self._loop = asyncio.new_event_loop()
        self.lost_words = self.deleted_children = 0
        """Last words of pods that nobody can read any more, and Jobs that a user deleted."""
        self._pods = self._jobs = 0
        self._highest: dict[str, tuple[int, int]] = {}
        self._over: dict[tuple[str, int], str] = {}
        self.due: datetime | None = None
        self.create_job()
        self.restart_operator()

    def close(self) -> None:
        """Give back what it holds."""
        self._loop.close()

    def pass_time(self, seconds: float) -> None:
        """Move the clock."""
        self.now += timedelta(seconds=seconds)

    # The user

    def create_job(self, **lifecycle: Any) -> None:
        """Create the FineTuneJob, if there is none."""
        if self.body is None:
            retries = {"max": RETRIES, "backoffSeconds": 1}
            spec = make_spec(lifecycle={"retries": retries, "onSpecChange": "Rerun", **lifecycle})
            self._jobs += 1
            meta = {"namespace": KEY[0], "name": KEY[1], "generation": 1, "uid": f"{self._jobs:05x}-of-the-job"}
            self.gateway.add("FineTuneJob", {"metadata": meta, "spec": spec})

    def change_spec(self, **fields: Any) -> None:
        """Change fields of the spec."""
        if (body := self.body) is not None:
            body["spec"] = {**body["spec"], **fields}
            body["metadata"]["generation"] += 1
            self.gateway.add("FineTuneJob", body)

    def change_lifecycle(self, **fields: Any) -> None:
        """Change fields of the lifecycle."""
        if (body := self.body) is not None:
            changed = {**body["spec"]["lifecycle"], **fields}
            self.change_spec(lifecycle={name: value for name, value in changed.items() if value is not None})

    def annotate(self, value: str) -> None:
        """Ask for a new run."""
        if (body := self.body) is not None:
            body["metadata"]["annotations"] = {"finetuning.dev/rerun": value}
            self.gateway.add("FineTuneJob", body)

    def delete_job(self) -> None:
        """Delete the FineTuneJob."""
        self.gateway.remove("FineTuneJob", KEY)

    def delete_child(self, number: int) -> None:
        """Delete one of its Jobs."""
        if jobs := list(self.gateway.objects["Job"]):
            self.deleted_children += 1
            self.gateway.remove("Job", jobs[number % len(jobs)])

    def delete_pod(self, number: int) -> None:
        """Delete one of its pods, with its grace."""
        if pods := list(self.gateway.objects["Pod"].values()):
            self._ask_to_end(pods[number % len(pods)])

    # What Kubernetes does

    def control(self) -> None:
        """Let the Job controller and the garbage collector do what is due."""
        uid = self.body["metadata"]["uid"] if self.body else None
        for key, job in list(self.gateway.objects["Job"].items()):
            if job["metadata"]["ownerReferences"][0]["uid"] != uid:
                self.gateway.remove("Job", key)
            else:
                self._control(job)
        names = {name for _, name in self.gateway.objects["Job"]}
        for pod in list(self.gateway.objects["Pod"].values()):
            if pod["metadata"]["ownerReferences"][0]["name"] not in names:
                self._ask_to_end(pod)

    def _control(self, job: Body) -> None:
        if job.get("status", {}).get("conditions"):
            return
        mine = [pod for pod in self.gateway.objects["Pod"].values() if _owner(pod) == job["metadata"]["name"]]
        if not mine and not job.get("status", {}).get("startTime"):
            job["status"] = {"startTime": format_time(self.now)}
            self.gateway.add("Job", job)
            self._make_pod(job)
        elif not mine:  # the one that it had was deleted before its end was counted
            self._end_job(job, "Failed", "Job has reached the specified backoff limit")
        elif mine[0]["status"]["phase"] == "Succeeded":
            self._end_job(job, "Complete", "")
        elif mine[0]["status"]["phase"] == "Failed":
            self._end_job(job, "Failed", _why(mine[0]))

    def _end_job(self, job: Body, kind: str, message: str) -> None:
        job["status"]["conditions"] = [{"type": kind, "status": "True", "message": message}]
        self.gateway.add("Job", job)

    def _make_pod(self, job: Body) -> None:
        self._pods += 1
        meta, template = job["metadata"], job["spec"]["template"]
        owner = {"kind": "Job", "name": meta["name"], "uid": meta["uid"], "controller": True}
        pod = {
            "metadata": {
                "namespace": meta["namespace"],
                "name": f"{meta['name']}-0-{self._pods}",
                "labels": template["metadata"]["labels"],
                "ownerReferences": [owner],
            },
            "spec": {"terminationGracePeriodSeconds": GRACE, "command": template["spec"]["containers"][0]["command"]},
            "status": {"phase": "Pending"},
        }
        self.gateway.add("Pod", pod)

    # The node

    def start_pods(self) -> None:
        """Run what waits."""
        for pod in list(self.gateway.objects["Pod"].values()):
            if (
                pod["status"]["phase"] == "Pending"
                and not pod.get("lost")
                and "deletionTimestamp" not in pod["metadata"]
            ):
                pod["status"] = {"phase": "Running", **_containers(pod, {"running": {}})}
                self.gateway.add("Pod", pod)

    def end_pods(self, code: int, *, silent: bool = False) -> None:
        """Let every pod that runs end; the trainer's word may be missing."""
        for pod in list(self.gateway.objects["Pod"].values()):
            if pod["status"]["phase"] == "Running" and not pod.get("lost"):
                self._end(pod, code, silent=silent)

    def lose_node(self) -> None:
        """Cut off the node of every pod; the taint manager asks them to end."""
        for pod in list(self.gateway.objects["Pod"].values()):
            if pod["status"]["phase"] in ("Pending", "Running"):
                pod["lost"] = True
                pod["status"]["conditions"] = [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "DeletionByTaintManager",
                        "lastTransitionTime": format_time(self.now),
                    }
                ]
                self._ask_to_end(pod)

    def reap(self) -> None:
        """End pods that were asked to, and remove those that have ended."""
        for key, pod in list(self.gateway.objects["Pod"].items()):
            if "deletionTimestamp" in pod["metadata"] and not pod.get("lost"):
                if pod["status"]["phase"] in ("Pending", "Running"):
                    self._end(pod, ExitCode.PREEMPTED)
                self.lost_words += 1
                self.gateway.remove("Pod", key)

    def _end(self, pod: Body, code: int, *, silent: bool = False) -> None:
        stage, run = pod["metadata"]["labels"][_STAGE], int(pod["metadata"]["labels"][_RUN])
        uid = pod["metadata"]["labels"]["finetuning.dev/job-uid"]
        collects = pod["spec"]["command"][-1] == "collect"
        if collects and code in WITH_RESULT and (uid, run) not in self.manifests:
            code = ExitCode.RESULT_MISSING
        told = "" if silent else _said(stage, code)
        self.lost_words += code in WITH_RESULT and not told
        if stage == "train" and code in WITH_RESULT:
            self.manifests.add((uid, run))
        phase = "Succeeded" if code == 0 else "Failed"
        state = {"terminated": {"exitCode": int(code), "reason": "x", "message": told}}
        pod["status"] = {**pod["status"], "phase": phase, **_containers(pod, state)}
        self.gateway.add("Pod", pod)

    def _ask_to_end(self, pod: Body) -> None:
        if "deletionTimestamp" not in pod["metadata"]:
            pod["metadata"]["deletionTimestamp"] = format_time(self.now + timedelta(seconds=GRACE))
            self.gateway.add("Pod", pod)

    # The operator

    def restart_operator(self) -> None:
        """Begin with nothing but a LIST. Whatever was due is looked at."""
        cache, queue = Cache(), WorkQueue()
        self.feed = Feed(cache, queue, forget=lambda _uid: None)
        wiring = Wiring(progress_url=lambda _job: "https://operator/x", progress_ca=lambda: "CA")
        self.reconciler = Reconciler(
            cache=cache, gateway=self.gateway, settings=SETTINGS, wiring=wiring, latest=lambda _uid: None,
            clock=lambda: self.now,
        )  # fmt: skip
        self._loop.run_until_complete(self.feed.relist(self.gateway))
        for events in self.gateway.events_of.values():
            events.clear()
        self.gateway.known = {name for _, name in self.gateway.objects["Job"]}
        self.due = self.now

    def deliver(self, kind: Kind, count: int = 1 << 30) -> None:
        """Bring the next events of one watch."""
        events = self.gateway.events_of[kind]
        for event, body in events[:count]:
            if event == "DELETED":
                self.feed.gone(kind, body["metadata"]["uid"])
            else:
                self.feed.seen(kind, body)
        del events[:count]

    def reconcile(self) -> None:
        """Let the operator look at the job once, with whatever it knows."""
        try:
            after = self._loop.run_until_complete(self.reconciler.reconcile(KEY))
        except OperatorDiedError:
            self.restart_operator()
        except ApiError:
            self.due = self.now
        else:
            self.due = None if after is None else self.now + timedelta(seconds=after)
        self.check()

    def catch_up(self) -> None:
        """Let Kubernetes act, all of it be seen, and the job be looked at."""
        self.control()
        for kind in self.gateway.events_of:
            self.deliver(kind)
        self.reconcile()

    # The truth

    @property
    def body(self) -> Body | None:
        """The FineTuneJob as it is stored."""
        return self.gateway.objects["FineTuneJob"].get(KEY)

    @property
    def status(self) -> FineTuneJobStatus:
        """Its status as it is stored."""
        assert self.body is not None
        return parse_job(self.body).status

    def live_pods(self) -> list[Body]:
        """Return the pods that may still do something, as far as anybody can know."""
        return [pod for pod in self.gateway.objects["Pod"].values() if self._lives(pod)]

    def _lives(self, pod: Body) -> bool:
        if pod["status"]["phase"] in ("Succeeded", "Failed"):
            return False
        deadline = parse_time(pod["metadata"].get("deletionTimestamp"))
        return deadline is None or self.now < deadline + timedelta(seconds=STUCK)

    def _check_creation(self, manifest: Body) -> None:
        """Never two attempts at once, and no name twice: when a Job is made, no pod of another one lives."""
        name = manifest["metadata"]["name"]
        manifest["metadata"]["creationTimestamp"] = format_time(self.now)
        assert name not in self.gateway.known, f"{name} is used twice"
        uid = manifest["metadata"]["ownerReferences"][0]["uid"]
        others = [pod["metadata"]["name"] for pod in self.live_pods() if _owner(pod) != name and _of(pod) == uid]
        assert not others, f"{name} is created while {others} live"

    def check(self) -> None:
        """What is promised at every moment."""
        if self.body is None or not self.body.get("status"):
            return
        status, uid = self.status, self.body["metadata"]["uid"]
        run = status.run or 0
        if status.attempt is not None:  # else a new run is wanted, and waits
            assert (run, status.attempt) >= self._highest.get(uid, (0, 0)), "a counter went back"
            self._highest[uid] = run, status.attempt
        if status.restarts:
            assert status.restarts.failures <= RETRIES, "the budget was exceeded"
        if status.phase == "Succeeded":
            assert (uid, run) in self.manifests, "Succeeded without a manifest"
            assert status.outputs is not None
        failure = status.last_failure
        if failure and failure.reason == "ResultLost":
            assert self.lost_words, "a result was taken for lost that was there to be read"
        if failure and failure.reason == "JobDeleted":
            assert self.deleted_children, "a Job was taken for deleted that was there"
        if is_terminal(status):
            assert self._over.setdefault((uid, run), str(status.phase)) == status.phase, "an end that was none"
        ready = next(item for item in status.conditions if item.type == "Ready")
        assert ready.reason, "no reason"

    def settle(self) -> None:
        """Let everything go well from here on, until nothing moves any more: by then the job has ended."""
        self.gateway.fault_before = self.gateway.fault_after = None
        self.change_lifecycle(suspend=False)
        for _ in range(400):
            self.everybody_acts()
            if self.body is None or is_terminal(self.status):
                break
        else:
            raise AssertionError(f"it never ends: {self.status.to_json()}")
        for _ in range(5):
            self.everybody_acts()
        if self.body is None:
            assert not self.gateway.objects["Job"], "Jobs were left behind"
            kept = [pod for pod in self.live_pods() if "deletionTimestamp" not in pod["metadata"]]
            assert not kept, "pods were left behind"

    def everybody_acts(self) -> None:
        """Let all do what is theirs, once, and time pass until something is due."""
        self.control()
        self.start_pods()
        self.end_pods(0)
        self.control()
        self.reap()
        self.catch_up()
        self.now += timedelta(seconds=max(1.0, (self.due - self.now).total_seconds()) if self.due else 1.0)


def _containers(pod: Body, state: Body) -> Body:
    return {"containerStatuses": [{"name": pod["metadata"]["labels"][_STAGE], "state": state}]}


def _owner(pod: Body) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["name"])


def _of(pod: Body) -> str:
    return str(pod["metadata"]["labels"]["finetuning.dev/job-uid"])


def _why(pod: Body) -> str:
    if pod["status"].get("conditions"):
        return f"Pod {pod['metadata']['name']} has condition DisruptionTarget matching FailJob rule at index 0"
    (container,) = pod["status"]["containerStatuses"]
    code = container["state"]["terminated"]["exitCode"]
    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    return (
        f"Container {container['name']} for pod {where} failed with exit code {code} matching FailJob rule at index 1"
    )


def _said(stage: str, code: int) -> str:
    """Return what the trainer says at an end with a result: both stages have one, but for train alone a gate fails."""
    if stage == "train" and code in WITH_RESULT:
        return trained_message().model_copy(update={"exit_code": code}).encode()
    return prepared_message().encode() if code == 0 else ""
