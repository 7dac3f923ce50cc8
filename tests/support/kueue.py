"""A test controller that plays Kueue's side of its contract. It is not Kueue, and is named so.

Written from Kueue's sources (0.19: pkg/controller/jobframework/reconciler.go, pkg/scheduler) for what our operator
sees of it: a Workload for each Job with a queue label, quota of one resource, admission by priority and age, preemption
of lower priorities within a ClusterQueue, requeueing. Conditions, reasons and messages are Kueue's. What it leaves out:
webhooks, finalizers, cohorts, flavors' node labels, admission checks, partial admission, topology.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from dev.cluster.access import Api
from dev.cluster.local import LocalCluster

Body = dict[str, Any]
CRDS = Path(__file__).with_name("kueue_crds.yaml")
GPU = "nvidia.com/gpu"
_KUEUE, _GROUP = "/apis/kueue.x-k8s.io/v1beta2", "kueue.x-k8s.io"
_QUEUE, _PRIORITY = f"{_GROUP}/queue-name", f"{_GROUP}/priority-class"


class KueueTestController:
    """Looks at all Jobs and Workloads a few times a second, and does for each the next thing that is due."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster, self._api = cluster, cluster.api
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kueue-test-controller", daemon=True)
        self.errors: list[Exception] = []

    def __enter__(self) -> KueueTestController:
        self._cluster.kubectl("apply", "--server-side", "-f", str(CRDS))
        self._cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._end.wait(0.2):
            try:
                self._look()
            except Exception as error:  # told by the test, which looks at `errors`
                self.errors.append(error)

    def _look(self) -> None:
        jobs = [job for job in _items(self._api, "/apis/batch/v1/jobs") if _QUEUE in job["metadata"].get("labels", {})]
        jobs = [job for job in jobs if "deletionTimestamp" not in job["metadata"]]
        workloads = {_owner(item): Workload(self._api, item) for item in _items(self._api, f"{_KUEUE}/workloads")}
        for job in jobs:
            workload = workloads.get(job["metadata"]["uid"])
            if workload is None:
                self._api.request("POST", _path(job, "workloads"), self._workload_of(job))
            else:
                self._reconcile(job, workload)
        self._schedule([workloads[job["metadata"]["uid"]] for job in jobs if job["metadata"]["uid"] in workloads])

    def _workload_of(self, job: Body) -> Body:
        meta, spec = job["metadata"], job["spec"]
        name = meta["labels"].get(_PRIORITY)
        reference = {"group": _GROUP, "kind": "WorkloadPriorityClass", "name": name}
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"],
                 "controller": True, "blockOwnerDeletion": True}  # fmt: skip
        return {
            "apiVersion": f"{_GROUP}/v1beta2",
            "kind": "Workload",
            "metadata": {
                "name": f"job-{meta['name']}-{meta['uid'][:5]}",
                "namespace": meta["namespace"],
                "labels": {f"{_GROUP}/job-uid": meta["uid"]},
                "ownerReferences": [owner],
            },
            "spec": {
                "active": True,
                "queueName": meta["labels"][_QUEUE],
                "podSets": [{"name": "main", "count": spec["parallelism"], "template": spec["template"]}],
                **({"priorityClassRef": reference, "priority": self._value_of(name)} if name else {"priority": 0}),
            },
        }

    def _value_of(self, name: str) -> int:
        found = self._api.get(f"{_KUEUE}/workloadpriorityclasses/{name}")
        return int(found["value"]) if found else 0

    def _reconcile(self, job: Body, workload: Workload) -> None:
        """Steps 3 and 6 to 8 of Kueue's JobReconciler."""
        ended = next((c for c in job["status"].get("conditions", []) if c["type"] in ("Complete", "Failed")), None)
        suspended = job["spec"].get("suspend", False)
        if workload.holds("Finished"):
            return
        if ended and ended["status"] == "True":
            workload.set("Finished", True, "Succeeded" if ended["type"] == "Complete" else "Failed", ended["message"])
        elif workload.holds("Evicted"):
            self._stop(job)
            if workload.holds("QuotaReserved") and suspended and not job["status"].get("active"):
                workload.release()
        elif suspended and workload.holds("Admitted"):
            self._put(job, suspend=False)
        elif not suspended and not workload.holds("Admitted"):
            self._stop(job)
        workload.write()

    def _stop(self, job: Body) -> None:
        if not job["spec"].get("suspend"):
            self._put(job, suspend=True)
        elif job["status"].get("startTime"):  # so that the Job's pods may get other nodes
            job["status"].pop("startTime")
            self._api.request("PUT", f"{_job_path(job)}/status", job)

    def _put(self, job: Body, *, suspend: bool) -> None:
        job["spec"]["suspend"] = suspend
        self._api.request("PUT", _job_path(job), job)  # a conflict is met by the next look

    def _schedule(self, workloads: list[Workload]) -> None:
        queues = {item["metadata"]["name"]: item for item in _items(self._api, f"{_KUEUE}/clusterqueues")}
        locals_ = {
            (item["metadata"]["namespace"], item["metadata"]["name"]): item["spec"]["clusterQueue"]
            for item in _items(self._api, f"{_KUEUE}/localqueues")
        }
        known = {name: [item for item in workloads if locals_.get(item.queue) == name] for name in queues}
        for item in workloads:
            if locals_.get(item.queue) is None and not item.holds("Finished"):
                item.set("QuotaReserved", False, "Misconfigured", f"LocalQueue {item.queue[1]} doesn't exist")
                item.write()
        for name, members in known.items():
            _admit(name, _quota(queues[name]), members)


def _admit(name: str, quota: int, members: list[Workload]) -> None:
    """Admit who fits, by priority and age; preempt lower priorities for who does not."""
    holding = [item for item in members if item.holds("QuotaReserved") and not item.holds("Finished")]
    waiting = [item for item in members if not item.holds("QuotaReserved") and not item.holds("Finished")]
    for item in sorted(waiting, key=lambda one: (-one.priority, one.created)):
        missing = item.gpus - (quota - sum(one.gpus for one in holding))
        if missing <= 0:
            item.admit(name)
            holding.append(item)
        else:
            victims = _victims(item, holding, missing)
            for victim in victims:
                victim.evict(item, name)
            pending = f". Pending the preemption of {len(victims)} workload(s)" if victims else ""
            why = f"insufficient unused quota for {GPU} in flavor gpu, {missing} more needed"
            item.set(
                "QuotaReserved",
                False,
                "WaitingForPreemptedWorkloads" if victims else "WaitingForQuota",
                f"couldn't assign flavors to pod set main: {why}{pending}",
            )
        item.write()


def _victims(item: Workload, holding: list[Workload], missing: int) -> list[Workload]:
    chosen: list[Workload] = []
    for one in sorted(holding, key=lambda one: one.priority):
        if one.priority < item.priority and sum(each.gpus for each in chosen) < missing:
            chosen.append(one)
    return chosen if sum(each.gpus for each in chosen) >= missing else []


class Workload:
    """A Workload as read, and what changes in its status."""

    def __init__(self, api: Api, body: Body) -> None:
        self._api, self.body, self._changed = api, body, False
        self.priority: int = body["spec"].get("priority", 0)
        self.queue = (body["metadata"]["namespace"], body["spec"]["queueName"])
        self.uid = body["metadata"]["uid"]
        self.created: str = body["metadata"]["creationTimestamp"]  # preemption does not send to the queue's end

    @property
    def gpus(self) -> int:
        """GPUs that it asks for."""
        sets = self.body["spec"]["podSets"]
        return sum(part["count"] * _gpus(container) for part in sets for container in _containers(part))

    def holds(self, kind: str) -> bool:
        """Whether a condition is true."""
        found = self._condition(kind)
        return found is not None and found["status"] == "True"

    def set(self, kind: str, value: bool, reason: str, message: str) -> None:
        """Set a condition."""
        old, status = self._condition(kind), "True" if value else "False"
        new = {"type": kind, "status": status, "reason": reason, "message": message}
        if old and all(old[field] == text for field, text in new.items()):
            return
        moved = not old or old["status"] != status
        new["lastTransitionTime"] = _now() if moved else str(old and old["lastTransitionTime"])
        kept = [item for item in self._conditions if item["type"] != kind]
        self.body.setdefault("status", {})["conditions"] = [*kept, new]
        self._changed = True

    def admit(self, cluster_queue: str) -> None:
        """SetQuotaReservation and SyncAdmittedCondition: what is evicted is so no longer."""
        self.set("QuotaReserved", True, "QuotaReserved", f"Quota reserved in ClusterQueue {cluster_queue}")
        self.set("Admitted", True, "Admitted", "The workload is admitted")
        for kind in ("Evicted", "Preempted"):
            if self.holds(kind):
                said = (self._condition(kind) or {})["message"]
                self.set(kind, False, "QuotaReserved", f"Previously: {said}")

    def evict(self, preemptor: Workload, cluster_queue: str) -> None:
        """IssuePreemptions: the quota stays with it until its Job has stopped."""
        if self.holds("Evicted"):
            return
        said = (
            f"Preempted to accommodate a workload (UID: {preemptor.uid}, JobUID: "
            f"{_owner(preemptor.body)}) due to prioritization in the ClusterQueue; preemptor path: /{cluster_queue}; "
            f"preemptee path: /{cluster_queue}"
        )
        self.set("Evicted", True, "Preempted", said)
        self.set("Preempted", True, "InClusterQueue", said)
        self.write()

    def release(self) -> None:
        """UnsetQuotaReservationWithCondition, once the Job has no pod at work."""
        said = (self._condition("Evicted") or {})["message"]
        self.set("Requeued", True, "Preempted", said)
        self.set("QuotaReserved", False, "PendingEvaluation", said)
        self.set("Admitted", False, "NoReservation", "The workload has no reservation")

    def write(self) -> None:
        """Write the status, if it changed; a conflict is met by the next look."""
        if not self._changed:
            return
        status, answer = self._api.request(
            "PUT", f"{_path(self.body, 'workloads')}/{_name(self.body)}/status", self.body
        )
        if status == HTTPStatus.OK:
            self.body = answer
        self._changed = False

    @property
    def _conditions(self) -> list[Body]:
        return list(self.body.get("status", {}).get("conditions", []))

    def _condition(self, kind: str) -> Body | None:
        return next((item for item in self._conditions if item["type"] == kind), None)


def _items(api: Api, path: str) -> list[Body]:
    return list((api.get(path) or {}).get("items", []))


def _owner(body: Body) -> str:
    return str(body["metadata"]["ownerReferences"][0]["uid"])


def _name(body: Body) -> str:
    return str(body["metadata"]["name"])


def _path(body: Body, plural: str) -> str:
    return f"{_KUEUE}/namespaces/{body['metadata']['namespace']}/{plural}"


def _job_path(job: Body) -> str:
    return f"/apis/batch/v1/namespaces/{job['metadata']['namespace']}/jobs/{_name(job)}"


def _quota(queue: Body) -> int:
    resources = queue["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    return int(next(item["nominalQuota"] for item in resources if item["name"] == GPU))


def _containers(part: Body) -> list[Body]:
    return list(part["template"]["spec"]["containers"])


def _gpus(container: Body) -> int:
    return int(container.get("resources", {}).get("requests", {}).get(GPU, 0))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
