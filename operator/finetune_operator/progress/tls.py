"""Keeps the status server's certificates: one Secret that all replicas share, and an SSL context that follows it.

The Secret ships empty in the manifests, so that the operator needs the right to update that one name and no right to
create any. Whoever comes first fills it; the others find their write in conflict and read again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from finetune_operator.progress.certificates import Bundle, Pair, up_to_date
from finetune_operator.progress.ports import TlsStore

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

SECRET = "finetune-operator-tls"  # noqa: S105 - a name
_TRIES = 5
_EVERY_SECONDS = 3600.0


class TlsSecretError(Exception):
    """The Secret is missing, or others write it faster than we read it."""


class TlsKeeper:
    """CA for the pods and context for the server, after the first `refresh`."""

    def __init__(
        self,
        store: TlsStore,
        *,
        names: tuple[str, ...],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._names, self._clock = store, names, clock
        self._bundle: Bundle | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        """Follows the Secret: connections that begin after a `refresh` get the new leaf."""
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2

    @property
    def ca_pem(self) -> str:
        """What pods trust. Raises TlsSecretError before the first refresh."""
        if self._bundle is None:
            raise TlsSecretError("the certificates have not been read yet")
        return self._bundle.ca.cert_pem.decode()

    async def refresh(self) -> None:
        """Read the Secret, renew in it what is due, serve what it has. Raises TlsSecretError."""
        for _ in range(_TRIES):
            bundle = await self._agree()
            if bundle is not None:
                self._serve(bundle)
                return
        raise TlsSecretError(f"Secret {SECRET} changed between reading and writing {_TRIES} times")

    async def keep(self) -> None:
        """Refresh every hour, for ever; the old leaf has thirty days left when one fails."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.refresh()
            except Exception as error:
                log.warning("certificates could not be refreshed (%s: %s)", type(error).__name__, error)

    async def _agree(self) -> Bundle | None:
        stored = await self._store.read()
        if stored is None:
            raise TlsSecretError(f"there is no Secret {SECRET}: apply the operator's manifests")
        known = Bundle.from_secret(stored)
        bundle = up_to_date(known, names=self._names, now=self._clock())
        return bundle if bundle is known or await self._store.write(bundle.to_secret()) else None

    def _serve(self, bundle: Bundle) -> None:
        if self._bundle is None or self._bundle.leaf.cert != bundle.leaf.cert:
            load_pair(self.context, bundle.leaf)
            log.info("serving a certificate valid until %s", bundle.leaf.cert.not_valid_after_utc.isoformat())
        self._bundle = bundle


def load_pair(context: ssl.SSLContext, pair: Pair) -> None:
    """Give the context this certificate, through pipes: ssl takes only files, and the key is to touch no disk."""
    with _readable(pair.cert_pem) as cert, _readable(pair.key_pem) as key:
        context.load_cert_chain(cert, key)


@contextmanager
def _readable(content: bytes) -> Iterator[str]:
    reader, writer = os.pipe()
    try:
        # Far below what a pipe holds (16 KiB at least), so this does not block.
        os.write(writer, content)
        os.close(writer)
        yield f"/dev/fd/{reader}"
    finally:
        os.close(reader)
