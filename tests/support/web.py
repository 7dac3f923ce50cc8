"""A web server with a certificate, on loopback: what `https://` data is fetched from in tests.

The names of its hosts are resolved by the test (`public`), to public addresses; the connection to such an address is
led to the server. So the whole of the client runs: TLS with the host's certificate, redirects, ranges, broken
connections.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HOSTS = ("data.example.com", "cdn.example.com")
PUBLIC = "93.184.215.14"


@dataclass
class Web:
    """Files, and how the server behaves."""

    folder: Path
    """Where the certificate lies."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By path."""
    redirects: dict[str, str] = field(default_factory=dict)
    """From path to URL."""
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """By path: answered in order instead of the file."""
    break_after: list[int] = field(default_factory=list)
    """Bytes after which connections break, one a connection."""
    has_etag: bool = True
    has_length: bool = True
    ranges: bool = True
    port: int = 0
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Host and range of each request, in order."""
    changed: bytes | None = None
    """What a file holds from the second request on."""

    @property
    def certificate(self) -> Path:
        """The authority that a client has to trust."""
        return self.folder / "web.pem"


@contextmanager
def serving(web: Web) -> Iterator[Web]:
    """Serve on loopback."""

    class Handler(_Handler):
        served = web

    _write_certificate(web.folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(web.certificate, web.folder / "web.key")
    server = _Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    web.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    served: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        web, path = self.served, urlsplit(self.path).path
        web.asked.append((self.headers["Host"], self.headers.get("Range", "")))
        self.close_connection = True
        if path in web.redirects:
            self._answer(302, b"", {"Location": web.redirects[path]})
        elif web.statuses.get(path):
            self._answer(web.statuses[path].pop(0), b"", {})
        elif path not in web.files:
            self._answer(404, b"", {})
        else:
            self._file(web.files[path] if web.changed is None or len(web.asked) == 1 else web.changed)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def _file(self, content: bytes) -> None:
        web = self.served
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": etag} if web.has_etag else {}
        wanted = self.headers.get("Range", "")
        if wanted and web.ranges and self.headers.get("If-Range") == etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._answer(206, content[start:], headers)
        else:
            self._answer(200, content, headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        web = self.served
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if web.has_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = web.break_after.pop(0) if content and web.break_after else len(content)
        self.wfile.write(content[:cut])
        self.wfile.flush()
        if cut < len(content):
            self.connection.shutdown(socket.SHUT_RDWR)


def _write_certificate(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web of the tests")])
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in HOSTS]
    names.append(x509.IPAddress(ipaddress.ip_address(PUBLIC)))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "web.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "web.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
