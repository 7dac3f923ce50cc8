"""Who is told what the loop does: metrics, or nobody."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from finetune_operator.api.status import FineTuneJobStatus
from finetune_operator.api.views import JobView, Key


class Observer(Protocol):
    """Is told after the fact; never fails, never waits."""

    def wrote(self, job: JobView, new: FineTuneJobStatus) -> None:
        """A status was written; the job has the one before."""

    def reconciling(self, key: Key) -> AbstractContextManager[None]:
        """A reconcile goes on as long as this is entered; what it raises passes through."""

    def reconciled(self, seconds: float) -> None:
        """A reconcile has ended well."""

    def failed(self, error: Exception) -> None:
        """A reconcile has failed."""


class Nobody:
    """An observer that is told nothing."""

    def wrote(self, job: JobView, new: FineTuneJobStatus) -> None:
        """Do nothing."""

    def reconciling(self, key: Key) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def reconciled(self, seconds: float) -> None:
        """Do nothing."""

    def failed(self, error: Exception) -> None:
        """Do nothing."""
