"""A local HTTP server that speaks the hub's endpoints and serves plain files, and misbehaves as it
is told.

    with HubServer() as server:
        server.files["/model.bin"] = b"..."
        server.repositories["org/name"] = Repository({"config.json": b"{}"})
        server.faults.append(Fault("/model.bin", cut=10))      # the next answer for it ends after ten bytes of its body
        fetch(f"{server.url}/model.bin")

``server.requests`` says what was asked, in order.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What goes wrong with requests whose path matches ``where``, and how often: ``times`` times
    (None = always).
    """

    where: str
    times: int | None = 1
    methods: tuple[str, ...] = ("GET",)
    status: int | None = None  # answer this status with an empty body
    cut: int | None = None  # close the connection after so many bytes of the body
    longer: int = 0  # announce so many bytes more than the file has (fewer, if negative)
    body: bytes | None = None  # other contents
    delay: float = 0.0  # seconds before the answer
    stall: tuple[int, float] | None = None  # after so many bytes, so many seconds of silence
    redirect: str | None = None
    no_length: bool = False  # neither Content-Length nor chunks
    chunked: bool = False
    ignore_range: bool = False
    shift: int = 0  # answer a range from so many bytes later than asked
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """A model repository on the hub. Files that end in .safetensors or .bin are stored as large
    files.
    """

    files: dict[str, bytes]
    gated: bool = False
    wrong: dict[str, bytes] = field(default_factory=dict)  # other bytes of the same announced hash

    @property
    def commit(self) -> str:
        listing = json.dumps({name: hashlib.sha1(content).hexdigest() for name, content in sorted(self.files.items())})
        return hashlib.sha1(listing.encode()).hexdigest()

    @staticmethod
    def is_large(name: str) -> bool:
        return name.endswith((".safetensors", ".bin"))

    @staticmethod
    def blob_id(content: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def description(self, name: str) -> dict[str, Any]:
        siblings = []
        for file, content in self.files.items():
            sibling: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": self.blob_id(content)}
            if self.is_large(file):
                sibling["lfs"] = {
                    "size": len(content),
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "pointerSize": 130,
                }
            siblings.append(sibling)
        return {
            "_id": "0" * 24,
            "id": name,
            "modelId": name,
            "sha": self.commit,
            "private": False,
            "gated": False,
            "tags": [],
            "downloads": 0,
            "siblings": siblings,
        }


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is nothing to report."""


class HubServer:
    """The server; a context manager. ``url`` is its address, for ``HF_ENDPOINT`` and for plain
    addresses alike.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = _Server(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.elsewhere = self.url.replace(
            "127.0.0.1", "localhost"
        )  # large files live on another host, as far as a client can tell
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> HubServer:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def asked(self, where: str, method: str = "GET") -> int:
        """How many requests matched."""
        return sum(1 for made, path, _ in self.requests if made == method and re.search(where, path))

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if method in fault.methods and re.search(fault.where, path) and fault.times != 0:
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        fault = self.hub.fault_for(self.command, path) or Fault("")
        if fault.delay:
            time.sleep(fault.delay)
        if fault.status is not None:
            return self.send(fault.status, b"", fault.headers, Fault(""))
        if fault.redirect is not None:
            return self.send(302, b"", {"Location": fault.redirect}, Fault(""))
        if path == "/":
            return self.send(200, b"hub", {}, fault)
        if match := re.fullmatch(r"/api/models/([^/]+(?:/[^/]+)?)(?:/revision/(.+))?", path):
            return self.describe(match[1], match[2] or "main", fault)
        if match := re.fullmatch(r"/((?!api/)[^/]+(?:/[^/]+)?)/resolve/([^/]+)/(.+)", path):
            return self.resolve(match[1], match[2], match[3], fault)
        if path in self.hub.files:
            content = fault.body if fault.body is not None else self.hub.files[path]
            return self.content(content, fault)
        return self.send(404, b"", {}, fault)

    def repository(self, name: str, revision: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, Fault(""))
        elif revision not in ("main", repository.commit):
            self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, Fault(""))
        else:
            return repository
        return None

    def describe(self, name: str, revision: str, fault: Fault) -> None:
        if (repository := self.repository(name, revision)) is not None:
            self.send(
                200, json.dumps(repository.description(name)).encode(), {"Content-Type": "application/json"}, fault
            )

    def resolve(self, name: str, revision: str, file: str, fault: Fault) -> None:
        if (repository := self.repository(name, revision)) is None:
            return
        if repository.gated:
            return self.send(
                401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "accept the terms first"}, fault
            )
        if file not in repository.files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"}, fault)
        content = repository.files[file]
        headers = {"X-Repo-Commit": repository.commit}
        if repository.is_large(file):
            digest = hashlib.sha256(content).hexdigest()
            self.hub.files[f"/cdn/{name}/{digest}"] = repository.wrong.get(file, content)
            headers |= {
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.hub.elsewhere}/cdn/{name}/{digest}",
            }
            return self.send(302, b"", headers, fault)
        fault.headers = headers | {"ETag": f'"{repository.blob_id(content)}"'} | fault.headers
        return self.content(repository.wrong.get(file, content), fault)

    def content(self, content: bytes, fault: Fault) -> None:
        etag = fault.headers.get("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        headers = {"ETag": etag, "Accept-Ranges": "bytes"} | fault.headers
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and not fault.ignore_range and self.headers.get("If-Range", etag) == etag:
            start = int(wanted[1]) + fault.shift
            if start >= len(content):
                return self.send(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"}, Fault(""))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self.send(206, content[start:], headers, fault)
        return self.send(200, content, headers, fault)

    def send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not fault.no_length:
            self.send_header("Content-Length", str(len(body) + fault.longer))
        ending = fault.cut is not None or fault.longer != 0 or fault.no_length or fault.stall is not None
        if ending:
            self.send_header("Connection", "close")
            self.close_connection = True
        try:
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault.cut is not None:
                body = body[: fault.cut]
            pieces = [body]
            if fault.stall is not None:
                pieces = [body[: fault.stall[0]], body[fault.stall[0] :]]
            for number, piece in enumerate(pieces):
                if number and fault.stall is not None:
                    self.wfile.flush()
                    time.sleep(fault.stall[1])
                if fault.chunked and piece:
                    self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
                else:
                    self.wfile.write(piece)
            if fault.chunked and fault.cut is None:
                self.wfile.write(b"0\r\n\r\n")
            self.wfile.flush()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def serving(
    files: dict[str, bytes] | None = None, repositories: dict[str, Repository] | None = None
) -> Iterator[HubServer]:
    """A server with these files and repositories, up for the length of the block."""
    with HubServer() as server:
        server.files |= files or {}
        server.repositories |= repositories or {}
        yield server
