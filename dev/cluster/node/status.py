"""What is told about a pod: its phase, conditions and container statuses. Pure.

Everything here is a function of what the worker knows. The rules that the control plane
relies on (1 to 5 and 11) are these functions.
"""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dev.cluster.node.client import Manifest

LOOPBACK_NODE = "127.0.0.1"
ALL_MESSAGES = 12 * 1024  # bytes of termination messages that a pod may have, shared by its containers
WAITING_FOR_INIT = "PodInitializing"
CREATING = "ContainerCreating"


@dataclass(slots=True)
class ContainerView:
    """What is known of one container."""

    name: str
    image: str
    state: dict[str, Any]
    last_state: dict[str, Any] = field(default_factory=dict)
    restarts: int = 0
    ready: bool = False
    container_id: str = ""

    @property
    def terminated(self) -> dict[str, Any] | None:
        """How it ended, if it has."""
        return self.state.get("terminated")

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return "running" in self.state

    @property
    def succeeded(self) -> bool:
        """Whether it ended with exit code 0."""
        return self.terminated is not None and self.terminated["exitCode"] == 0


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a pod is being ended before its containers end by themselves."""

    grace: float
    reason: str = ""  # for the pod's status; a plain delete has none
    message: str = ""
    is_disruption: bool = False  # decided by this node, so that the condition is ours to set


@dataclass(slots=True)
class PodView:
    """What is known of one pod."""

    pod: Manifest
    init: Sequence[ContainerView]
    main: Sequence[ContainerView]
    started: str
    address: str
    sandboxed: bool = False
    stop: Stop | None = None
    ended: bool = False  # nothing runs any more and nothing will


def now() -> str:
    """Return the time as Kubernetes writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def pod_status(view: PodView, *, before: Mapping[str, Manifest]) -> Manifest:
    """Return the status to be merged; `before` are our conditions as last told, by type."""
    phase = pod_phase(view)
    status: Manifest = {
        "phase": phase,
        "startTime": view.started,
        "hostIP": LOOPBACK_NODE,
        "hostIPs": [{"ip": LOOPBACK_NODE}],
        "conditions": _conditions(view, phase, before=before),
        "containerStatuses": [_container_status(item, view) for item in view.main],
    }
    if view.init:
        status["initContainerStatuses"] = [_container_status(item, view) for item in view.init]
    if view.sandboxed:
        status |= {"podIP": view.address, "podIPs": [{"ip": view.address}]}
    if view.stop and view.stop.reason:
        status |= {"reason": view.stop.reason, "message": view.stop.message}
    return status


def pod_phase(view: PodView) -> str:
    """Return the phase; a terminal one only when every container has stopped."""
    every = [*view.init, *view.main]
    if any(item.running for item in every):
        return "Running" if is_initialized(view) else "Pending"
    if view.ended:
        succeeded = all(item.succeeded for item in every) and not (view.stop and view.stop.reason)
        return "Succeeded" if succeeded else "Failed"
    has_run = any(item.terminated or item.last_state for item in view.main)
    return "Running" if has_run else "Pending"


def settle(view: PodView) -> None:
    """Note that nothing runs any more and nothing will.

    Containers that an ended pod never got to start count as failed, but only once it had
    initialized: a pod deleted before has no exit code, as with a kubelet.
    """
    view.ended = True
    if view.stop and is_initialized(view):
        message = "The container could not be located when the pod was terminated"
        lost = {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": message}
        for container in view.main:
            if container.terminated is None:
                container.state = {"terminated": lost}


def is_initialized(view: PodView) -> bool:
    """Whether all init containers have succeeded."""
    return all(item.succeeded for item in view.init)


def _conditions(view: PodView, phase: str, *, before: Mapping[str, Manifest]) -> list[Manifest]:
    containers_ready = all(item.ready for item in view.main)
    initialized = is_initialized(view)
    unready = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase, "ContainersNotReady")
    truths: dict[str, tuple[bool, str]] = {
        "PodReadyToStartContainers": (view.sandboxed and not view.ended, ""),
        "Initialized": (initialized, "" if initialized else "ContainersNotInitialized"),
        "Ready": (containers_ready, "" if containers_ready else unready),
        "ContainersReady": (containers_ready, "" if containers_ready else unready),
        "PodScheduled": (True, ""),
    }
    conditions = [_condition(kind, *truth, before=before) for kind, truth in truths.items()]
    if view.stop and view.stop.is_disruption:
        disrupted = _condition("DisruptionTarget", True, "TerminationByKubelet", before=before)
        conditions.append(disrupted | {"message": view.stop.message})
    return conditions


def _condition(kind: str, truth: bool, reason: str, *, before: Mapping[str, Manifest]) -> Manifest:
    status = "True" if truth else "False"
    old = before.get(kind)
    since = old["lastTransitionTime"] if old and old["status"] == status else now()
    # An empty reason is said, too: a merge would keep the old one.
    return {"type": kind, "status": status, "reason": reason or None, "lastTransitionTime": since}


def _container_status(item: ContainerView, view: PodView) -> Manifest:
    return {
        "name": item.name,
        "image": item.image,
        "imageID": f"process://{item.image}" if item.container_id else "",
        "containerID": item.container_id,
        "state": _cut(item.state, view),
        "lastState": _cut(item.last_state, view),
        "ready": item.ready,
        "started": item.running,
        "restartCount": item.restarts,
    }


def _cut(state: dict[str, Any], view: PodView) -> dict[str, Any]:
    terminated = state.get("terminated")
    if not terminated or not terminated.get("message"):
        return state
    share = ALL_MESSAGES // (len(view.init) + len(view.main))
    message = terminated["message"].encode()[:share].decode(errors="ignore")
    return {"terminated": terminated | {"message": message}}
