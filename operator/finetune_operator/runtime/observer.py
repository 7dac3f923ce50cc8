"""Who is told what the loop does: metrics, or nobody."""

from __future__ import annotations

from typing import Protocol

from finetune_operator.api.status import FineTuneJobStatus


class Observer(Protocol):
    """Is told after the fact; never fails, never waits."""

    def wrote(self, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
        """A status was written."""

    def reconciled(self, seconds: float) -> None:
        """A reconcile has ended well."""

    def failed(self, error: Exception) -> None:
        """A reconcile has failed."""


class Nobody:
    """An observer that is told nothing."""

    def wrote(self, old: FineTuneJobStatus, new: FineTuneJobStatus) -> None:
        """Do nothing."""

    def reconciled(self, seconds: float) -> None:
        """Do nothing."""

    def failed(self, error: Exception) -> None:
        """Do nothing."""
