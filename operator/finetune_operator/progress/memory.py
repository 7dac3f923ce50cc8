"""The newest report of each job, in memory until the reconciler's next status write.

Nothing else depends on it: after a restart the next post fills it again.
"""

from __future__ import annotations

from collections import OrderedDict
from datetime import datetime, timedelta
from itertools import takewhile

from finetune_operator.api.report import ProgressReport

_LATELY = timedelta(seconds=30)


class ProgressStore:
    """Reports by job uid, bounded: the job that has been silent for longest is forgotten first."""

    def __init__(self, *, size: int = 16384) -> None:
        self._size = size
        self._reports: OrderedDict[str, ProgressReport] = OrderedDict()

    def put(self, uid: str, report: ProgressReport) -> bool:
        """Replace the job's report; False if this one came in before the one that is here and so says nothing new."""
        known = self._reports.get(uid)
        if known and known.received_at > report.received_at:
            return False
        self._reports[uid] = report
        self._reports.move_to_end(uid)
        if len(self._reports) > self._size:
            self._reports.popitem(last=False)
        return True

    def latest(self, uid: str) -> ProgressReport | None:
        """Return the job's newest report."""
        return self._reports.get(uid)

    def posting(self, now: datetime) -> int:
        """Return how many jobs have posted lately."""
        newest_first = reversed(self._reports.values())
        return sum(1 for _ in takewhile(lambda report: now - report.received_at < _LATELY, newest_first))

    def forget(self, uid: str) -> None:
        """Drop what is known about a job that is gone."""
        self._reports.pop(uid, None)
