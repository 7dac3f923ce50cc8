"""How an attempt failed: from the Job's condition and its pods to a class, a reason and a sentence.

The exit code is read from the Job first, since that outlives the pod, then from the pod (job-traps 5, 6).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from finetune_contract.exit_codes import BY_CODE, KILLED, TERMINATED, ExitCode, FailureClass
from finetune_contract.outcome import TerminationMessage
from finetune_operator.api.conditions import Reason
from finetune_operator.api.views import ChildJob, ContainerView, PodView

_EXIT_CODE = re.compile(r"Container (\S+) for pod (\S+) failed with exit code (\d+)")
_DISRUPTED = re.compile(r"Pod \S*?([^/\s]+) has condition DisruptionTarget")
_MAX_MESSAGE, _MAX_TAIL = 1024, 500


@dataclass(frozen=True, slots=True)
class Failed:
    """One failure of one attempt."""

    failure_class: FailureClass
    reason: str
    message: str
    exit_code: int | None = None
    pod: str | None = None
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class _End:
    """What is known about how the pod ended."""

    code: int | None
    pod: str | None
    container: ContainerView | None
    disruption: str
    deleted: bool


def classify(child: ChildJob, pods: tuple[PodView, ...]) -> Failed:
    """Return how a failed Job failed."""
    end = _end(child, pods)
    said = TerminationMessage.decode(end.container.message) if end.container else None
    known = BY_CODE.get(end.code) if end.code is not None else None
    if known and (not end.disruption or known.failure_class is FailureClass.USER_ERROR):
        message = said.message if said and said.message else known.meaning
        return _failed(end, known.failure_class, known.reason, message, said)
    if end.disruption or end.code is None or end.code == TERMINATED:
        return _failed(end, FailureClass.DISRUPTED, Reason.EVICTED, _disruption(end, child), said)
    if end.code == KILLED:
        return _killed(end, said)
    raw = end.container.message if end.container and not said else ""
    return _failed(
        end, FailureClass.INFRASTRUCTURE, Reason.UNKNOWN_EXIT_CODE, f"exit code {end.code}. {raw}".strip(), said
    )


def _end(child: ChildJob, pods: tuple[PodView, ...]) -> _End:
    match = _EXIT_CODE.search(child.failure_message)
    named = match[2].rpartition("/")[2] if match else ""
    # Of several pods the one that the Job names has failed first; the others ended because of it.
    ended = next(iter(sorted(_ended(pods), key=lambda one: one[0].name != named)), None)
    pod, container = ended or (None, None)
    return _End(
        code=int(match[3]) if match else container.exit_code if container else None,
        pod=pod.name if pod else match[2].rpartition("/")[2] if match else None,
        container=container,
        disruption=next((pod.disruption for pod in pods if pod.disruption), ""),
        deleted=not pods or any(pod.deleted_at for pod in pods),
    )


def _ended(pods: tuple[PodView, ...]) -> Iterator[tuple[PodView, ContainerView]]:
    for pod in pods:
        for container in pod.containers:
            if container.state == "terminated" and container.exit_code != ExitCode.SUCCESS:
                yield pod, container


def _killed(end: _End, said: TerminationMessage | None) -> Failed:
    if end.container and end.container.reason == "OOMKilled":
        message = "the container exceeded its memory limit: raise spec.resources.memory"
        return _failed(end, FailureClass.OUT_OF_MEMORY, Reason.KILLED, message, said)
    if end.deleted:
        return _failed(end, FailureClass.DISRUPTED, Reason.EVICTED, "the pod was deleted", said)
    message = "the container was killed (exit code 137): out of memory on the node, or not done within its grace period"
    return _failed(end, FailureClass.INFRASTRUCTURE, Reason.KILLED, message, said)


def _disruption(end: _End, child: ChildJob) -> str:
    if end.disruption:
        return f"the pod was disrupted: {end.disruption}"
    if match := _DISRUPTED.search(child.failure_message):
        return f"pod {match[1]} was preempted, evicted or drained"
    return f"the pod ended without an exit code of its own: {child.failure_message or 'it was deleted'}"


def _failed(end: _End, kind: FailureClass, reason: str, message: str, said: TerminationMessage | None) -> Failed:
    return Failed(
        failure_class=kind,
        reason=str(reason),
        message=message[:_MAX_MESSAGE],
        exit_code=end.code,
        pod=end.pod,
        log_tail=(said.log_tail if said else "")[-_MAX_TAIL:],
    )
