"""What the status server needs of the rest of the operator, as small Protocols: `main` passes implementations in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from finetune_operator.api.report import ProgressReport
from finetune_operator.progress.identity import TokenIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class JobHandle:
    """A job as far as posts go."""

    uid: str
    pods: frozenset[str]
    """uids of the live pods of the current attempt: only they may post."""
    attempt: int | None = None
    """The current attempt, which reports carry on."""


class TokenReviewer(Protocol):
    """Asks the API server about a token."""

    async def review_token(self, token: str, *, audience: str) -> TokenIdentity | None:
        """Return who the token belongs to, None when it is refused. Raises when the API server does not answer."""


class Jobs(Protocol):
    """The jobs that the operator knows."""

    def find(self, namespace: str, name: str) -> JobHandle | None:
        """Return the job of this name, None when there is none."""

    def accept(self, uid: str, report: ProgressReport) -> None:
        """Take the newest report of a job."""


class TlsStore(Protocol):
    """The Secret `finetune-operator-tls`, which the manifests ship empty."""

    async def read(self) -> dict[str, bytes] | None:
        """Return the Secret's data, None when there is no such Secret."""

    async def write(self, data: dict[str, bytes]) -> bool:
        """Replace the data that `read` last returned; False when somebody else wrote since."""
