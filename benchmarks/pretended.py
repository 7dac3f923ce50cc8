"""Pods that only pretend to run, where thousands of processes cannot be had: an administrator writes their status.

There is no node and nothing is scheduled. A prepare pod ends at once with the word of a prepare stage, a training pod
becomes ready and stays so. Everything that the operator sees of them is what the API server keeps.
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime
from typing import Any

from benchmarks.operator_bench import Api
from dev.cluster.local import LocalCluster
from finetune_contract.outcome import TerminationMessage
from finetune_operator.api.constants import LABEL_JOB, LABEL_STAGE, MANAGED_SELECTOR

Body = dict[str, Any]


class PretendedPods:
    """Watches the pods of a namespace's jobs and says that they run; `training` has the training pods by job.

    With a word for them training pods end, too, as soon as they are there.
    """

    def __init__(
        self, cluster: LocalCluster, namespace: str, *, prepared: TerminationMessage, trained: TerminationMessage | None
    ) -> None:
        self.training: dict[str, str] = {}
        self._api, self._path = Api(cluster), f"/api/v1/namespaces/{namespace}/pods"
        self._words = {"prepare": prepared, "train": trained}
        query = f"labelSelector={MANAGED_SELECTOR.replace('=', '%3D').replace('/', '%2F')}"
        self._stream = Api(cluster).open("GET", f"{self._path}?watch=1&{query}")
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            event = json.loads(line)
            pod = event["object"]
            if event["type"] == "ADDED":
                self._pretend(pod, stage=pod["metadata"]["labels"][LABEL_STAGE])

    def _pretend(self, pod: Body, *, stage: str) -> None:
        name, now = pod["metadata"]["name"], datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        word = self._words[stage]
        states = [_state(container["name"], word, now) for container in pod["spec"]["containers"]]
        phase = "Running" if word is None else "Succeeded"
        ready = {"type": "Ready", "status": "True" if phase == "Running" else "False"}
        status = {"phase": phase, "startTime": now, "conditions": [ready], "containerStatuses": states}
        self._api.call("PATCH", f"{self._path}/{name}/status", {"status": status})
        if stage == "train":
            self.training[pod["metadata"]["labels"][LABEL_JOB]] = name


def _state(name: str, word: TerminationMessage | None, now: str) -> Body:
    done = {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}
    state = {"running": {"startedAt": now}} if word is None else {"terminated": {**done, "message": word.encode()}}
    fields = {"image": "pretended", "imageID": "", "restartCount": 0}
    return {"name": name, "ready": word is None, "started": word is None, "state": state, **fields}
