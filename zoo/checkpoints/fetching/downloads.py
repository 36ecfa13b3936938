"""A download over HTTP: retried, resumed, and held against its size and hash."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from zoo.checkpoints.fetching.archives import extract
from zoo.checkpoints.fetching.jobs import PATIENCE, Fetched, Job, Progress, RetryLimits, link_or_copy, storage_full
from zoo.checkpoints.fetching.sources import url_name
from zoo.errors import FetchError
from zoo.formats.disk import CHUNK, sha256_of


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows up to ten redirects, none from https to http."""

    max_redirections = 10

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise FetchError(f"{req.full_url} redirects to {newurl}, which is not https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Retry(Exception):
    """A failure that another try may not meet."""


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
    known. A server that announces nothing is believed only where a hash is known.
    """
    patience = patience or PATIENCE
    part, note = target.with_name(target.name + ".incomplete"), target.with_name(target.name + ".incomplete.json")
    failures = 0
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
    mark, done = _part_so_far(part, note, sha256)
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", "User-Agent": "extended-zoo"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if mark:
            request.add_header("If-Range", mark)
    try:
        response = urllib.request.build_opener(_Redirects()).open(request, timeout=patience.timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # our part is longer than what the server has, or exactly whole
                if _total_of(error.headers) == done and (sha256 or mark):
                    return
                raise _Stale from None
            message = f"the server answered {error.code} {error.reason}"
            if 300 <= error.code < 400:
                message = f"the server redirects in a loop, or more than {_Redirects.max_redirections} times"
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
    with response:
        if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise FetchError(
                f"the server compresses ({response.headers['Content-Encoding']}) although it was asked not to"
            )
        if response.status == 206:
            begin = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
            if begin is None or int(begin[1]) != done:
                raise _Stale
            total = _total_of(response.headers)
        else:
            done = 0
            total = int(length) if (length := response.headers.get("Content-Length", "")).isdigit() else None
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
            note.write_text(json.dumps({"url": url, "mark": mark}), encoding="utf-8")
        _receive(response, part, done, total, tell, urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])


def _part_so_far(part: Path, note: Path, sha256: str | None) -> tuple[str | None, int]:
    """The server's mark of the contents that the part was begun with, and the part's length; 0
    where nothing can be resumed.
    """
    if not part.exists():
        return None, 0
    try:
        mark = json.loads(note.read_text(encoding="utf-8"))["mark"]
    except (OSError, ValueError, KeyError, TypeError):
        mark = None
    return mark, part.stat().st_size if mark or sha256 else 0


def _total_of(headers: Any) -> int | None:
    match = re.match(r"bytes (?:\d+-\d+|\*)/(\d+)", headers.get("Content-Range", "") or "")
    return int(match[1]) if match else None


def _receive(response: Any, part: Path, done: int, total: int | None, tell: Progress, what: str) -> None:
    try:
        with part.open("ab") as file:
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                done += len(chunk)
                tell(what, done, total)
    except http.client.HTTPException as error:
        raise _Retry(f"the connection broke after {done:,} bytes: {error!r}") from error
    except (TimeoutError, ConnectionError, ssl.SSLError) as error:
        raise _Retry(f"the connection broke after {done:,} bytes: {error or type(error).__name__}") from error
    if total is not None and done < total:
        raise _Retry(f"the connection ended after {done:,} of {total:,} bytes")
    if total is not None and done > total:
        part.unlink(missing_ok=True)
        raise _Retry(f"the server sent {done:,} bytes after announcing {total:,}")
