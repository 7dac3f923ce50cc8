"""Pods that only pretend to run, where thousands of processes cannot be had: an administrator writes their status.

A prepare pod ends at once with the word of a prepare stage, a training pod becomes ready and stays so, or ends.
Everything that the operator sees of them is what the API server keeps. `PretendedNode` has pods bound and does no more.
"""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime

from benchmarks.measuring import Api, Body
from dev.cluster.local import LocalCluster
from finetune_contract.outcome import TerminationMessage
from finetune_operator.api.constants import LABEL_JOB, LABEL_STAGE, MANAGED_SELECTOR

_NODE = "pretended"
_RENEW_SECONDS = 4.0


class PretendedPods:
    """Watches the pods of a namespace's jobs and says that they run; `training` has the training pods by job.

    With a word for them training pods end, too: at once, or some seconds after they have begun.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        namespace: str,
        *,
        prepared: TerminationMessage,
        trained: TerminationMessage | None,
        after: float = 0.0,
        are_bound: bool = False,
    ) -> None:
        """`are_bound`: there is a node, and pods are left alone until they are bound to it."""
        self.training: dict[str, str] = {}
        self._cluster, self._path = cluster, f"/api/v1/namespaces/{namespace}/pods"
        self._api, self._after, self._are_bound = Api(cluster), after, are_bound
        self._prepared, self._trained = prepared, trained
        self._begun: set[str] = set()
        query = f"labelSelector={MANAGED_SELECTOR.replace('=', '%3D').replace('/', '%2F')}"
        self._stream = Api(cluster).open("GET", f"{self._path}?watch=1&{query}")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            pod = json.loads(line)["object"]
            name, bound = pod["metadata"]["name"], pod["spec"].get("nodeName")
            if name not in self._begun and (bound or not self._are_bound):
                self._begun.add(name)
                self._pretend(pod, stage=pod["metadata"]["labels"][LABEL_STAGE])

    def _pretend(self, pod: Body, *, stage: str) -> None:
        word = self._prepared if stage == "prepare" else self._trained
        if stage == "train":
            self.training[pod["metadata"]["labels"][LABEL_JOB]] = pod["metadata"]["name"]
        if stage == "prepare" or not self._after:
            self._write(self._api, pod, word)
            return
        self._write(self._api, pod, None)
        threading.Timer(self._after, lambda: self._write(Api(self._cluster), pod, word)).start()

    def _write(self, api: Api, pod: Body, word: TerminationMessage | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        phase = "Running" if word is None else "Succeeded"
        ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
        before = [_state(item["name"], self._prepared, now) for item in pod["spec"].get("initContainers", ())]
        states = [_state(item["name"], word, now) for item in pod["spec"]["containers"]]
        status = {"phase": phase, "startTime": now, "conditions": [ready], "containerStatuses": states}
        body = {"status": {**status, "initContainerStatuses": before} if before else status}
        api.call("PATCH", f"{self._path}/{pod['metadata']['name']}/status", body)


class PretendedNode:
    """A node of any size that renews its Lease: pods are bound to it, and nobody starts them."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._api = Api(cluster)
        room = {"cpu": "1000000", "memory": "1000000Gi", "ephemeral-storage": "1000000Gi", "pods": "1000000"}
        room["nvidia.com/gpu"] = "1000000"
        ready = {"type": "Ready", "status": "True", "reason": "Pretended", "message": ""}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": _NODE}}
        self._api.call("POST", "/api/v1/nodes", node)
        status = {"capacity": room, "allocatable": room, "conditions": [ready]}
        self._api.call("PATCH", f"/api/v1/nodes/{_NODE}/status", {"status": status})
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{_NODE}"
        self._api.call("POST", self._path.rpartition("/")[0], self._lease())
        threading.Thread(target=self._renew, daemon=True).start()

    def _renew(self) -> None:
        """Until the API server is gone."""
        while True:
            time.sleep(_RENEW_SECONDS)
            try:
                self._api.call("PATCH", self._path, self._lease())
            except (OSError, RuntimeError):
                return

    @staticmethod
    def _lease() -> Body:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": _NODE, "leaseDurationSeconds": 40, "renewTime": now}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": _NODE, "namespace": "kube-node-lease"},
            "spec": spec,
        }


def _state(name: str, word: TerminationMessage | None, now: str) -> Body:
    done = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    state = {"running": {"startedAt": now}} if word is None else {"terminated": {**done, "message": word.encode()}}
    fields = {"image": "pretended", "imageID": "", "restartCount": 0}
    return {"name": name, "ready": word is None, "started": word is None, "state": state, **fields}
