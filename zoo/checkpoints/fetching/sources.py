"""What a source's text means: ``hub:org/name``, ``package:NAME==VERSION#path``, ``https://...``."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoo.errors import CheckpointError, ConfigError
from zoo.formats.disk import safe_path
from zoo.registry.records import Record

KINDS = ("package", "hub", "file", "https", "http", "page")
ARCHIVES = (".whl", ".zip", ".tar.gz", ".tgz", ".tar", ".tar.bz2", ".tar.xz")


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
        version = f"{'==' if self.kind == 'package' else '@'}{self.version}" if self.version else ""
        return f"{self.kind}:{self.place}{version}{f'#{self.path}' if self.path else ''}"

    @property
    def slug(self) -> str:
        """A short name for folders."""
        if self.kind in ("http", "https"):
            parts = [urllib.parse.urlsplit(self.place).path.rsplit("/", 1)[-1]]
        else:
            parts = [self.place, self.version or ""]
        last = self.path.rstrip("/").rsplit("/", 1)[-1] if self.path else ""
        joined = "-".join(part for part in [*parts, last] if part)
        return re.sub(r"[^A-Za-z0-9._]+", "-", joined).strip("-.")[:60] or "source"


def parse_source(text: str | os.PathLike[str]) -> Source:
    """Read a source; a ``ConfigError`` says what is wrong with it."""
    if not isinstance(text, str):
        return Source("file", os.fspath(text))
    kind, colon, rest = text.partition(":")
    if not colon or len(kind) == 1 or kind not in KINDS:
        if colon and len(kind) > 1 and re.fullmatch(r"[a-z][a-z0-9+.-]*", kind) and not Path(text).exists():
            raise ConfigError(
                f"unknown kind of source {kind!r} in {text!r}; a source starts with "
                f"{', '.join(f'{k}:' for k in KINDS)} or is a path"
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
            path = safe_path(path)
        except CheckpointError as error:
            raise ConfigError(f"{text!r}: {error}") from None
    name = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    patterns = {
        "package": (rf"({name})==([A-Za-z0-9.!+_-]+)", "package:NAME==VERSION#path/inside"),
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
        path = safe_path(named["path"]) if "path" in named else None
    except (ValueError, CheckpointError) as error:
        raise ConfigError(f"{text!r}: the part after # must be sha256=... and path=..., joined by &: {error}") from None
    digest = named.get("sha256")
    if set(named) - {"sha256", "path"} or (digest is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", digest)):
        raise ConfigError(
            f"{text!r}: the part after # must be sha256=<64 hexadecimal digits> and path=<folder inside>, joined by &"
        )
    return Source(kind, place, path=path, sha256=digest.lower() if digest else None)


@dataclass(frozen=True)
class Want:
    """What to take from a source: ``files`` (name -> sha256 or "") must be there, ``optional`` may.
    No files at all = all there is.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    archive_sha256: str | None = None
    bytes: int | None = None  # of the one file that a plain address gives

    @classmethod
    def of(cls, entry: Record, source: Source) -> Want:
        """What a record (already narrowed to this source) wants of it."""
        files = {name: digest.lower() for name, digest in entry.wanted.items()}
        checkpoint = checkpoint_of(source)
        if checkpoint and not (entry.files and checkpoint.lower().endswith(ARCHIVES)):
            digest = (entry.sha256 or files.pop(checkpoint, "")).lower()
            files = {checkpoint: digest} | {name: v for name, v in files.items() if name != checkpoint}
        elif not entry.files:  # the record does not say which file holds the tensors: take all
            files = {}
        return cls(files, entry.optional, entry.archive_sha256 or source.sha256, entry.bytes)


def checkpoint_of(source: Source) -> str | None:
    """The one file that a source points at, where it does."""
    if source.kind == "hub":
        return source.path
    if source.kind in ("http", "https") and source.path is None:
        return url_name(source)
    return None


def url_name(source: Source) -> str:
    """The last part of an address, as a file name without surprises."""
    name = urllib.parse.unquote(urllib.parse.urlsplit(source.place).path.rsplit("/", 1)[-1])
    return re.sub(r"[^A-Za-z0-9._+-]", "_", name).lstrip(".") or "download"
