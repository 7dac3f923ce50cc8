"""A TCP proxy that breaks connections in their middle: what a load balancer that restarts looks like from a client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_PIECE = 64 << 10


@dataclass
class Flaky:
    """The proxy: every third connection breaks once it has carried `after` bytes in either direction."""

    upstream: tuple[str, int]
    after: int
    accepted: int = 0
    broken: int = 0
    threads: list[threading.Thread] = field(default_factory=list)
    clients: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listener: socket.socket) -> None:
        """Take connections until the listener is closed."""
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                self.accepted += 1
                limit = self.after if self.accepted % 3 == 0 else None
                self.clients.append(client)
                self.threads.append(threading.Thread(target=self._connect, args=(client, limit)))
                self.threads[-1].start()

    def _connect(self, client: socket.socket, limit: int | None) -> None:
        with client, socket.create_connection(self.upstream) as server:
            back = threading.Thread(target=self._carry, args=(server, client, limit))
            back.start()
            self._carry(client, server, limit)
            back.join()

    def _carry(self, one: socket.socket, other: socket.socket, limit: int | None) -> None:
        carried = 0
        with suppress(OSError):
            while piece := one.recv(_PIECE):
                other.sendall(piece)
                carried += len(piece)
                if limit is not None and carried >= limit:
                    with self._lock:
                        self.broken += 1
                    break
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def flaky(endpoint: str, *, after: int) -> Iterator[tuple[str, Flaky]]:
    """Put a proxy before a server; yield the URL to use instead, and the proxy."""
    address = urlsplit(endpoint)
    proxy = Flaky((str(address.hostname), int(address.port or 80)), after)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=proxy.serve, args=(listener,))
        thread.start()
        try:
            port = listener.getsockname()[1]
            yield address._replace(netloc=f"127.0.0.1:{port}").geturl(), proxy
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            # Clients keep connections open for their next request.
            for client, connection in zip(proxy.clients, proxy.threads, strict=True):
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
                connection.join()
