"""A download over HTTP: retried, resumed, and held against its size and hash."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.checkpoints.fetching.archives import extract
from zoo.checkpoints.fetching.jobs import PATIENCE, Fetched, Job, Progress, RetryLimits, link_or_copy, storage_full
from zoo.checkpoints.fetching.sources import url_name
from zoo.errors import FetchError
from zoo.formats.disk import CHUNK, sha256_of


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows up to ten redirects, to https, or from http to http; to nothing else."""

    max_redirections = 10

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urllib.parse.urlsplit(newurl).scheme.lower()
        if scheme != "https" and not (scheme == "http" and req.full_url.lower().startswith("http:")):
            raise FetchError(f"{req.full_url} redirects to {newurl}, which is not https; refused")
        fp.read = lambda *_: b""  # the body of a redirect may never end, and says nothing
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connections:
    """Opens addresses of http and https alone, and can cut what it has opened."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        outer = self

        class Plain(http.client.HTTPConnection):
            def connect(self) -> None:
                super().connect()
                outer.sockets.append(self.sock)

        class Secure(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                outer.sockets.append(self.sock)

        class Http(urllib.request.HTTPHandler):
            def http_open(self, req: Any) -> Any:
                return self.do_open(Plain, req)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, req: Any) -> Any:
                return self.do_open(Secure, req)

        self.opener = urllib.request.OpenerDirector()
        errors = (urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor)
        for handler in (urllib.request.ProxyHandler, urllib.request.UnknownHandler, Http, Https, _Redirects, *errors):
            self.opener.add_handler(handler())

    def cut(self) -> None:
        for opened in self.sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def open(self, request: urllib.request.Request, patience: RetryLimits) -> Any:
        """The answer to a request. A server that takes longer than a window to give one is cut off,
        however often it sends something.
        """
        watch = threading.Timer(patience.window, self.cut)
        watch.daemon = True
        watch.start()
        try:
            return self.opener.open(request, timeout=patience.timeout)
        finally:
            watch.cancel()


class _Retry(Exception):
    """A failure that another try may not meet."""


class _Slow(_Retry):
    """The server sends something, but so little that it could go on for ever."""


class _Stale(Exception):
    """What was downloaded so far belongs to other contents than the server has now."""


def fetch_url(job: Job) -> Fetched:
    """A plain address: the file itself, or what is wanted out of an archive."""
    source, want = job.source, job.want
    name = url_name(source)
    unpack = name not in want.files
    expected = want.archive_sha256 if unpack else want.files.get(name) or source.sha256
    if expected and not unpack and (blob := job.cache.blob(expected)) is not None:
        link_or_copy(blob, job.folder / name)
        return None, {}
    target = job.cache.partial(job.key) / name
    if not (expected and target.exists() and sha256_of(target) == expected):
        target.unlink(missing_ok=True)  # a killed run may have left it, of whatever version
        download(source.place, target, sha256=expected, size=None if unpack else want.bytes, tell=job.tell)
    if unpack:
        extract(target, job.folder, path=source.path, want=want)
        return None, {"archive": name, "archive_sha256": sha256_of(target)}
    os.replace(target, job.folder / name)
    return None, {}


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    tell: Progress | None = None,
    patience: RetryLimits | None = None,
) -> None:
    """Download to ``target``; a part lives beside it as ``.incomplete`` and is resumed by this call
    or by a later one.

    Whole means: as many bytes as the server announced (and as ``size`` says), with the hash that is
    known. A server that announces nothing is believed only where a hash is known. Without one a part
    is only gone on with where the server says that it still has the same contents: the same length,
    and the same ETag or date. How slow a server may be stands at `RetryLimits`.
    """
    patience = patience or PATIENCE
    part, note = target.with_name(target.name + ".incomplete"), target.with_name(target.name + ".incomplete.json")
    failures = slow = 0
    restarted = False
    resumed = part.exists()
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _transfer(url, part, note, sha256, size, tell or (lambda what, done, total: None), patience)
            break
        except _Retry as error:
            after = part.stat().st_size if part.exists() else 0
            failures = 1 if after > before else failures + 1
            slow += isinstance(error, _Slow)
            if slow >= patience.tries:
                raise FetchError(f"{error} (in {slow} tries)") from error
            if failures >= patience.tries:
                raise FetchError(f"{error} (tried {patience.tries} times without getting further)") from error
            time.sleep(min(patience.pause * 2 ** (failures - 1), 8.0))
        except _Stale:
            if restarted:
                raise FetchError(f"{url} keeps changing while it is being downloaded") from None
            restarted = True
            _forget(part, note)
    digest = sha256_of(part) if sha256 else None
    if digest != sha256:
        _forget(part, note)
        if resumed:  # what an earlier run left may have been of other contents
            return download(url, target, sha256=sha256, size=size, tell=tell, patience=patience)
        raise FetchError(f"{url} has sha256 {digest}, expected {sha256}; nothing was kept")
    os.replace(part, target)
    note.unlink(missing_ok=True)


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _transfer(
    url: str, part: Path, note: Path, sha256: str | None, size: int | None, tell: Progress, patience: RetryLimits
) -> None:
    """One request; returns when the part is whole."""
    begun, done = _part_so_far(part, note, sha256)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "extended-zoo"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if begun.mark:
            request.add_header("If-Range", begun.mark)
    try:
        response = _Connections().open(request, patience)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and done:  # our part is longer than what the server has, or exactly whole
                if _total_of(error.headers) == done and (sha256 or begun.agrees(error.headers, done)):
                    return
                raise _Stale from None
            message = f"the server answered {error.code} {error.reason}"
            if 300 <= error.code < 400:
                message = f"the server redirects in a loop, or more than {_Redirects.max_redirections} times"
                if " is not allowed" in str(error.msg):
                    message = f"the server redirects to {error.headers.get('Location')}, which is not https; refused"
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _Retry(message) from None
        raise FetchError(message) from None
    except FetchError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(error, ValueError):
            raise FetchError(f"{url}: {reason}") from error
        if isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError)):
            raise FetchError(f"{urllib.parse.urlsplit(url).netloc} can't be reached: {reason}") from error
        raise _Retry(f"{urllib.parse.urlsplit(url).netloc} can't be reached: {reason}") from error
    with closing(response.fp or io.BytesIO()), response:
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise FetchError(
                f"the server compresses ({response.headers['Content-Encoding']}) although it was asked not to"
            )
        if response.status == 206 and done:
            begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            total = _total_of(response.headers)
            if begin is None or int(begin[1]) != done or not (sha256 or begun.agrees(response.headers, total)):
                raise _Stale
        elif response.status == 200:
            done, length = 0, response.headers.get("Content-Length", "").strip()
            if length and not (length.isascii() and length.isdigit()):
                raise FetchError(f"the server announces {length!r} as the length of the file")
            total = int(length) if length else None
        else:
            raise FetchError(f"the server answered {response.status} {response.reason}, with which no whole file comes")
        if size is not None and total is not None and total != size:
            _forget(part, note)
            raise FetchError(f"the server announces {total:,} bytes, expected {size:,}")
        total = total if total is not None else size
        if total is None and sha256 is None and response.headers.get("Transfer-Encoding", "").lower() != "chunked":
            raise FetchError(
                "the server does not say how long the file is, and no sha256 is known to tell a whole one; add "
                "#sha256=..."
            )
        if total is not None and total - done > shutil.disk_usage(part.parent).free:
            raise storage_full(part.parent, url, needed=total - done)
        if done == 0:
            part.unlink(missing_ok=True)
            strong = response.headers.get("ETag", "")
            mark = strong if strong and not strong.startswith("W/") else response.headers.get("Last-Modified")
            note.write_text(json.dumps({"url": url, "mark": mark, "total": total}), encoding="utf-8")
        held = response.fp = _Held(response.fp)
        _receive(response, part, done, total, tell, urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1], patience)
        if not sha256 and total is not None and held.goes_on():
            _forget(part, note)
            raise FetchError(f"the server goes on after the {total:,} bytes that it announced; add #sha256=...")
        if not sha256 and not size and part.stat().st_size == 0:
            _forget(part, note)
            raise FetchError("the server sent an empty file, and no sha256 says that it is one; add #sha256=...")


class _Held:
    """The stream of an answer, kept open at the announced length to see whether anything follows."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def close(self) -> None:
        """Left to who opened it."""

    def goes_on(self) -> bool:
        """Whether more comes within a moment; most servers close the connection at once."""
        try:
            self.stream.raw._sock.settimeout(0.2)
            return bool(self.stream.read1(1))
        except (AttributeError, OSError, ValueError):
            return False


@dataclass(frozen=True)
class _Begun:
    """What the server said of the contents when a part was begun: its mark of them, and how long
    they are.
    """

    mark: str | None = None
    total: int | None = None

    def agrees(self, headers: Any, total: int | None) -> bool:
        """Whether an answer is about the same contents, as far as it can be told without a hash."""
        same = self.mark is not None and self.mark in (headers.get("ETag"), headers.get("Last-Modified"))
        return same and total is not None and self.total in (None, total)


def _part_so_far(part: Path, note: Path, sha256: str | None) -> tuple[_Begun, int]:
    """What the server said when the part was begun, and the part's length; 0 where nothing can be
    resumed.
    """
    if not part.exists():
        return _Begun(), 0
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        mark, total = noted["mark"], noted.get("total")
        begun = _Begun(mark if isinstance(mark, str) else None, total if isinstance(total, int) else None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        begun = _Begun()
    return begun, part.stat().st_size if begun.mark or sha256 else 0


def _total_of(headers: Any) -> int | None:
    match = re.match(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", "") or "")
    return int(match[1]) if match else None


def _receive(
    response: Any, part: Path, done: int, total: int | None, tell: Progress, what: str, patience: RetryLimits
) -> None:
    began, before = time.monotonic(), done
    try:
        with part.open("ab") as file:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                done += len(chunk)
                tell(what, done, total)
                if (passed := time.monotonic() - began) > patience.window:
                    if done - before < patience.rate * passed and done != total:
                        raise _Slow(
                            f"the server sent {done - before:,} bytes in {passed:.0f} seconds, fewer than "
                            f"{patience.rate:,.0f} a second"
                        )
                    began, before = time.monotonic(), done
    except http.client.HTTPException as error:
        raise _Retry(f"the connection broke after {done:,} bytes: {error!r}") from error
    except (TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _Retry(f"the connection broke after {done:,} bytes: {error or type(error).__name__}") from error
    if total is not None and done < total:
        raise _Retry(f"the connection ended after {done:,} of {total:,} bytes")
    if total is not None and done > total:
        part.unlink(missing_ok=True)
        raise _Retry(f"the server sent {done:,} bytes after announcing {total:,}")
