"""Files of public web servers: streamed to disk, continued after a broken connection, from public addresses only.

No cookies, no credentials, no proxy: a proxy would resolve the name again, out of our sight. Redirects are followed to
https:// only, each checked like the first address (`addresses`).
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from finetune_contract.exit_codes import ExitCode
from finetune_contract.run_config import Use
from finetune_trainer.errors import NotFoundError, TrainerError
from finetune_trainer.preemption import PREEMPTION
from finetune_trainer.storage.addresses import RefusedAddressError, public_addresses
from finetune_trainer.storage.failures import disk_full, file_failures

TIMEOUT = 30
ATTEMPTS = 4
"""In a row without a byte more."""
REDIRECTS = 5
PIECE = 1 << 20
_HEADERS = {"User-Agent": "finetune-operator", "Accept": "*/*", "Accept-Encoding": "identity"}
_REDIRECTED = (301, 302, 303, 307, 308)
_GONE = (404, 410)
_DENIED = (401, 402, 403, 407, 451)
_OK, _PARTIAL, _RANGE_NOT_SATISFIABLE = 200, 206, 416
_TOO_MANY, _SERVER_ERROR = 429, 500


class _BrokenError(Exception):
    """Worth another attempt."""


@dataclass(slots=True)
class _Transfer:
    """A file that is arriving."""

    uri: str
    file: IO[bytes]
    digest: Any = field(default_factory=hashlib.sha256)
    validator: str = ""
    """ETag or date by which the server knows whether it still has the same content."""

    @property
    def size(self) -> int:
        return self.file.tell()

    def start_over(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.digest = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self.file.write(piece)
        self.digest.update(piece)


def download(uri: str, path: Path) -> str:
    """Fetch a file, atomically; return its sha256. Raises NotFoundError, and TrainerError for all else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with file_failures(uri, use=Use.DATASET), part.open("wb") as file:
        transfer = _Transfer(uri, file)
        _patiently(transfer)
    part.replace(path)
    digest: str = transfer.digest.hexdigest()
    return digest


def _patiently(transfer: _Transfer) -> None:
    """Go on until the file is complete, or until ATTEMPTS in a row have brought nothing."""
    failed = 0
    while True:
        before = transfer.size
        try:
            _go_on(transfer)
        except _BrokenError as error:
            failed = 1 if transfer.size > before else failed + 1
            if failed == ATTEMPTS:
                why = f"after {ATTEMPTS} attempts: {error}"
                raise _failure(ExitCode.STORAGE_UNAVAILABLE, transfer.uri, why) from error
            time.sleep(2**failed / 8)
        else:
            return


def _go_on(transfer: _Transfer) -> None:
    try:
        connection, response = _ask(transfer)
        try:
            _check_status(transfer, response)
            _receive(transfer, response)
        finally:
            response.close()  # which holds the socket, where the server closes it
            connection.close()
    except ssl.SSLCertVerificationError as error:
        why = f"its certificate is not trusted: {error.verify_message}"
        raise _failure(ExitCode.STORAGE_UNAVAILABLE, transfer.uri, why) from error
    except (http.client.HTTPException, ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError) as error:
        raise _BrokenError(str(error) or type(error).__name__) from error


def _ask(transfer: _Transfer) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
    """Send the request, following redirects, for what is not there yet."""
    headers = dict(_HEADERS)
    if transfer.size and transfer.validator:
        headers |= {"Range": f"bytes={transfer.size}-", "If-Range": transfer.validator}
    url = transfer.uri
    for _ in range(REDIRECTS + 1):
        connection = _connection(url, transfer.uri)
        parts = urlsplit(url)
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        connection.request("GET", f"{path}?{parts.query}" if parts.query else path, headers=headers)
        response = connection.getresponse()
        if response.status not in _REDIRECTED:
            return connection, response
        response.close()
        connection.close()
        url = urljoin(url, response.headers.get("Location", ""))
    raise _failure(ExitCode.STORAGE_UNAVAILABLE, transfer.uri, f"it redirects more than {REDIRECTS} times")


def _connection(url: str, uri: str) -> http.client.HTTPSConnection:
    """Connect to an address of the host that was checked. Raises CONFIG_INVALID for all that is not public https."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname or "@" in parts.netloc:
        raise _failure(ExitCode.CONFIG_INVALID, uri, "it leads to a URL that is not https:// or carries credentials")
    try:
        port = parts.port or 443
        addresses = public_addresses(parts.hostname, port)
    except RefusedAddressError as error:
        raise _failure(
            ExitCode.CONFIG_INVALID,
            uri,
            f"{parts.hostname} has a {error} address, and data is fetched from public ones only: "
            "put it into object storage or on a claim",
        ) from error
    except ValueError as error:
        raise _failure(ExitCode.CONFIG_INVALID, uri, f"it leads to a URL that is none: {error}") from error
    return _PinnedConnection(parts.hostname, port, addresses)


class _PinnedConnection(http.client.HTTPSConnection):
    """Connects to the given addresses instead of asking for them again; the certificate must be the host's."""

    def __init__(self, host: str, port: int, addresses: list[str]) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, port, timeout=TIMEOUT, context=self._tls)
        self._addresses = addresses

    def connect(self) -> None:
        plain = dial(self._addresses, self.port)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


def dial(addresses: list[str], port: int) -> socket.socket:
    """Connect to the first address that answers. Raises OSError of the last."""
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), TIMEOUT)
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), TIMEOUT)


def _check_status(transfer: _Transfer, response: http.client.HTTPResponse) -> None:
    status = response.status
    if status == _PARTIAL and response.headers.get("Content-Range", "").startswith(f"bytes {transfer.size}-"):
        return
    if status == _OK:
        transfer.start_over()
        return
    if status in _GONE:
        raise NotFoundError(transfer.uri)
    if status in _DENIED:
        why = f"the server answered {status}; data of the web is read without credentials: put it into object storage"
        raise _failure(ExitCode.STORAGE_ACCESS_DENIED, transfer.uri, why)
    if status in (_PARTIAL, _RANGE_NOT_SATISFIABLE):
        transfer.start_over()
        transfer.validator = ""
        raise _BrokenError("it answered another range than was asked for")
    if status >= _SERVER_ERROR or status == _TOO_MANY:
        raise _BrokenError(f"the server answered {status}")
    raise _failure(ExitCode.STORAGE_UNAVAILABLE, transfer.uri, f"the server answered {status}")


def _receive(transfer: _Transfer, response: http.client.HTTPResponse) -> None:
    etag = response.headers.get("ETag", "")
    # A weak ETag does not promise equal bytes.
    transfer.validator = response.headers.get("Last-Modified", "") if etag.startswith("W/") or not etag else etag
    coming = response.length
    if coming is not None and coming > shutil.disk_usage(Path(transfer.file.name).parent).free:
        raise disk_full(f"{transfer.uri} ({(transfer.size + coming) / (1 << 30):.1f} GiB)")
    wanted = None if coming is None else transfer.size + coming
    while piece := response.read(PIECE):
        PREEMPTION.check()
        transfer.add(piece)
    if wanted is not None and transfer.size < wanted:
        raise _BrokenError("the connection broke in the middle")


def _failure(code: ExitCode, uri: str, why: str) -> TrainerError:
    return TrainerError(code, f"{uri} cannot be fetched: {why}.")
