"""A fake of the Hugging Face hub: a local HTTP server that speaks the part of its API that downloads and pushes use.

A fake, since the real hub is not reachable from tests: revisions, file lists with hashes, `resolve` with ETag, commit
and Range, gated repositories and outages; new repositories, large file storage and commits, as huggingface_hub 2.4's
client expects them. Storage of large files by Xet
is left out: the client falls back to plain HTTP.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test_token_of_the_fake_hub"
LARGE = 100_000
"""Files from this size on are in large file storage: their hash is sha256."""


@dataclass
class FakeHub:
    """One repository of a model or data set, and how the hub behaves."""

    name: str
    folder: Path
    kind: str = "models"
    """models or datasets."""
    commit: str = "c0ffee" * 6 + "c0ff"
    branch: str = "main"
    gated: bool = False
    down: bool = False
    break_after: int | None = None
    """Bytes after which the connection breaks, once, in the first large file that is longer."""
    damage: bool = False
    """Large files arrive with a wrong byte."""
    endpoint: str = ""
    ranges: list[str] = field(default_factory=list)
    """Range headers of requests, in order."""
    downloads: list[str] = field(default_factory=list)
    """Files that were asked for, in order."""
    created: dict[str, bool] = field(default_factory=dict)
    """Repositories that were made, and whether they are private."""
    pushed: dict[str, bytes] = field(default_factory=dict)
    """Files of commits, by their path in the repository."""
    commits: int = 0
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large file storage, by sha256."""

    def files(self) -> list[dict[str, object]]:
        return [self._entry(path) for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def _entry(self, path: Path) -> dict[str, object]:
        content = path.read_bytes()
        entry: dict[str, object] = {
            "rfilename": path.relative_to(self.folder).as_posix(),
            "size": len(content),
            "blobId": git_sha1(content),
        }
        if len(content) >= LARGE:
            entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry


@contextmanager
def running(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve the hub on loopback."""

    class Handler(_Handler):
        served = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    served: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        hub, path = self.served, unquote(urlsplit(self.path).path).strip("/")
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if hub.down:
            self._refuse(503, "", "the hub is down")
        elif not self._has_token():
            self._refuse(401, "", "Invalid username or password.")
        elif path == "api/repos/create":
            self._create(json.loads(content))
        elif path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            self._json({"files": [_upload_mode(file) for file in json.loads(content)["files"]]})
        elif path.endswith("info/lfs/objects/batch"):
            objects = [self._upload_action(item) for item in json.loads(content)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            self._commit([json.loads(line) for line in content.splitlines() if line])
        else:
            self._refuse(404, "", path)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.served.stored[hashlib.sha256(content).hexdigest()] = content
        self._send(200, b"", {})

    def _create(self, asked: dict[str, Any]) -> None:
        name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
        if name in self.served.created:
            self._send(409, json.dumps({"url": f"{self.served.endpoint}/{name}"}).encode(), JSON)
            return
        self.served.created[name] = bool(asked.get("private")) or asked.get("visibility") == "private"
        self._json({"url": f"{self.served.endpoint}/{name}", "id": name})

    def _upload_action(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["oid"] in self.served.stored:
            return item
        return {**item, "actions": {"upload": {"href": f"{self.served.endpoint}/lfs/{item['oid']}"}}}

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        hub = self.served
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                hub.pushed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.pushed[value["path"]] = hub.stored[value["oid"]]
        hub.commits += 1
        oid = f"{hub.commits:040x}"
        self._json({"success": True, "commitOid": oid, "commitUrl": f"{hub.endpoint}/{hub.name}/commit/{oid}"})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), JSON)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        hub = self.served
        if hub.down:
            self._refuse(503, "", "the hub is down")
        elif path.startswith(f"api/{hub.kind}/{hub.name}/revision/"):
            self._model(path.rpartition("/")[2])
        elif path.startswith(files := f"{'' if hub.kind == 'models' else 'datasets/'}{hub.name}/resolve/"):
            self._file(path.removeprefix(files).partition("/")[2])
        else:
            self._refuse(404 if self._has_token() else 401, "RepoNotFound", "Repository not found")

    def _model(self, revision: str) -> None:
        hub = self.served
        if revision not in (hub.branch, hub.commit):
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
            return
        gated = "manual" if hub.gated else False
        info = {"id": hub.name, "sha": hub.commit, "private": False, "gated": gated, "siblings": hub.files()}
        self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        hub = self.served
        if hub.gated and not self._has_token():
            self._refuse(401, "GatedRepo", "Access to this model is restricted")
            return
        content = (hub.folder / name).read_bytes()
        large = len(content) >= LARGE
        etag = hashlib.sha256(content).hexdigest() if large else git_sha1(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": hub.commit, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if self.command == "HEAD":
            self._send(200, content, headers)
            return
        hub.downloads.append(name)
        if large and hub.damage:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self._send_range(content, headers, large=large)

    def _send_range(self, content: bytes, headers: dict[str, str], *, large: bool) -> None:
        wanted = self.headers.get("Range", "")
        if not wanted:
            self._send(200, content, headers, breakable=large)
            return
        self.served.ranges.append(wanted)
        start, _, last = wanted.removeprefix("bytes=").partition("-")
        end = int(last) + 1 if last else len(content)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        self._send(206, content[int(start) : end], headers, breakable=large)

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, breakable: bool = False) -> None:
        self._head(status, headers | {"Content-Length": str(len(content))})
        if self.command == "HEAD":
            return
        cut = self.served.break_after
        if breakable and cut is not None and cut < len(content):
            self.served.break_after = None
            self.wfile.write(content[:cut])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, text: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": text} if code else {}
        self._send(status, json.dumps({"error": text}).encode(), headers | {"Content-Type": "application/json"})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"


JSON = {"Content-Type": "application/json"}


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    return {"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular", "shouldIgnore": False}


def git_sha1(content: bytes) -> str:
    """Return git's own hash of a file."""
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
