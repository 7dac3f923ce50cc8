"""Telling the control plane about a pod: one writer a pod, only when there is news.

Strategic merge patches: conditions are merged by type, so that those which others set
(`DisruptionTarget` by the eviction API, for one) survive us. The pod's uid goes along as a
precondition, because a new pod may have the old one's name.
"""

import asyncio
import http
import logging

from dev.cluster.node.client import FAILURES, ApiError, Client, Manifest
from dev.cluster.node.status import PodView, pod_status

RETRY = 0.5
GONE = (http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT)
log = logging.getLogger(__name__)


class Teller:
    """The writer of one pod's status."""

    def __init__(self, client: Client, view: PodView, *, news: asyncio.Event) -> None:
        metadata = view.pod["metadata"]
        self.path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._uid = metadata["uid"]
        self._client = client
        self._view = view
        self._news = news
        self._last: Manifest = {}
        self._is_ending = False

    async def run(self) -> None:
        """Tell whatever is new, until `finish` has been called and the last word is told.

        In turn and to its end: a request that is given up may still be done, after the next one.
        """
        is_last = False
        while not is_last:
            await self._news.wait()
            is_last = self._is_ending
            await self._tell()

    def finish(self) -> None:
        """Have the present status told as the last one."""
        self._is_ending = True
        self._news.set()

    async def _tell(self) -> None:
        """Tell the present status, however long it takes."""
        self._news.clear()
        while True:
            if await self._told():
                return
            await asyncio.sleep(RETRY)

    async def delete(self) -> None:
        """Confirm a deletion: everything has ended, the object may go."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._uid}}
        while True:
            try:
                await self._client.delete(self.path, options)
            except FAILURES as error:
                if not isinstance(error, ApiError) or error.status not in GONE:
                    await asyncio.sleep(RETRY)
                    continue
            return

    async def _told(self) -> bool:
        before = {condition["type"]: condition for condition in self._last.get("conditions", [])}
        status = pod_status(self._view, before=before)
        if status == self._last:
            return True
        try:
            await self._client.patch(f"{self.path}/status", {"metadata": {"uid": self._uid}, "status": status})
        except FAILURES as error:
            log.info("status of %s: %s", self.path, error)
            return isinstance(error, ApiError) and error.status in GONE
        self._last = status
        return True
