"""Bad lines, collected: the user sees the first few and how many there are, not one an attempt."""

from __future__ import annotations

from finetune_contract.exit_codes import ExitCode
from finetune_trainer.errors import TrainerError

SHOWN = 5


class BadExampleError(Exception):
    """One line cannot be used, or a file from there on. The text says what is wrong and what to do; the caller adds
    file and line.
    """

    def __init__(self, what: str, *, at: str = "") -> None:
        super().__init__(what)
        self.at = at
        """Line or row, where a whole file is given up there."""


class Problems:
    """Collects what is wrong with the data."""

    def __init__(self) -> None:
        self._shown: list[str] = []
        self.count = 0

    def add(self, where: str, what: str) -> None:
        """Remember a problem; `where` names file and line."""
        self.count += 1
        if len(self._shown) < SHOWN:
            self._shown.append(f"{where}: {what}")

    def raise_if_any(self) -> None:
        """Raise DATASET_INVALID with the first problems and their number."""
        if not self.count:
            return
        more = f" (and {self.count - SHOWN} more bad lines)" if self.count > SHOWN else ""
        raise TrainerError(ExitCode.DATASET_INVALID, "; ".join(self._shown) + more)
