"""The cache of fetched checkpoints: whatever happens, an entry is absent, old and whole, or new and
whole.

    refs/<key>.json          what one source is: its files with size and sha256, revision, when; replaced atomically
    trees/<slug>-<hash>/     the files of a source, read-only; the hash is that of their names and contents
    blobs/<sha256>           the same files once more, as hard links: what two sources share is stored once
    partial/<key>/           downloads that are not whole yet (.incomplete), resumed by the next try
    staging/<key>/           files on their way into a tree; whoever holds the key's lock may throw them away
    locks/                   one lock file per key, and one for publishing and pruning
    converted/<name>-<tree>/ what `zoo.create` made of a tree, beside a lock file; it names its own hashes

A tree appears by one rename and is never written to again; a reference to it is replaced by one
rename after that. So a kill at any moment leaves, at worst, leftovers that nothing points at.
"""

from __future__ import annotations

import datetime
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.errors import FetchError, UnknownNameError, unknown
from zoo.formats.disk import UNFINISHED, abandoned, is_still, safe_path, sha256_of, sync, unused, write_atomically
from zoo.formats.limits import printable, repr_short

VERSION = 1
LOCAL = ".local"  # how the name of a conversion ends whose source lies outside of the cache
LARGEST_RECORD = 16 << 20  # bytes


def home() -> Path:
    """The cache's folder: ``ZOO_HOME``, or ``zoo`` in the platform's folder for caches."""
    try:
        return _home()
    except RuntimeError as error:  # a user without a home
        raise FetchError(f"no folder for the cache: {error}; set ZOO_HOME to one") from error


def _home() -> Path:
    if chosen := os.environ.get("ZOO_HOME"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "zoo"


# --- locks


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True


def _open_lock(path: Path) -> int:
    """A lock file, which other users of a shared cache may have made; who may not write to it can lock
    it all the same.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError:
            raise FetchError(
                f"{path.parent} can't be written ({error.strerror}); set ZOO_HOME to a folder of your own, or ask for "
                "the rights of those who share this one"
            ) from error


@contextmanager
def locked(path: Path, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a lock file against every other process and thread; gives False, not held, if ``wait``
    is false and another holds it.

    The system lets go of it when its holder dies. ``waiting`` is called once, when somebody else
    turns out to hold it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pause = 0.01
    while True:
        descriptor = _open_lock(path)
        try:
            if _try_lock(descriptor):
                if is_still(path, descriptor):
                    yield True
                    return
                continue
            if not wait:
                yield False
                return
        finally:
            os.close(descriptor)
        if waiting is not None:
            waiting()
            waiting = None
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


# --- files


def remove(path: Path) -> None:
    """Remove a file or a folder with all in it, read-only files too; what is gone already is
    fine. Nothing is said of what may not be removed. The rights of files stay: others may hold them
    by another name.
    """
    if path.is_dir() and not path.is_symlink():
        if sys.platform == "win32":  # where a read-only file can't be removed
            for folder, _, names in os.walk(path):
                for name in names:
                    with suppress(OSError):
                        os.chmod(Path(folder) / name, stat.S_IWRITE | stat.S_IREAD)
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError, PermissionError):
            path.unlink()


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            return sum(_size(inner) for inner in path.iterdir())
        return path.lstat().st_size
    return 0


@dataclass(frozen=True)
class Stored:
    """One file of an entry."""

    size: int
    sha256: str


@dataclass(frozen=True)
class CacheEntry:
    """One fetched source. ``folder`` holds ``files``, named relative to it."""

    key: str
    source: str
    name: str | None
    revision: str | None
    fetched: str
    folder: Path
    files: Mapping[str, Stored]
    facts: Mapping[str, Any]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files.values())

    def present(self) -> bool:
        """Whether every file is there with its size (contents are ``Cache.verify``'s business)."""
        try:
            return all((self.folder / name).stat().st_size == file.size for name, file in self.files.items())
        except OSError:
            return False


@dataclass(frozen=True)
class Odd:
    """A record that can't be read as one: where, and why."""

    path: Path
    why: str


@dataclass(frozen=True)
class Verified:
    """What ``Cache.verify`` found in one entry, conversion or odd record (``shown``): no problems, or
    what is wrong with which file.
    """

    shown: str
    problems: tuple[str, ...]
    entry: CacheEntry | None = None


@dataclass(frozen=True)
class Pruned:
    """Something that ``Cache.prune`` removed (or would remove): what, where, how many bytes,
    why.
    """

    path: Path
    bytes: int
    reason: str


def _mentions(file: Path, word: str) -> bool:
    """Whether a file can be read and holds a word."""
    try:
        return word.encode() in file.read_bytes()
    except OSError:
        return False


def _difference(path: Path, file: Stored) -> str:
    """How a stored file differs from what was fetched, in words; empty where it does not."""
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != file.size:
            return f"has {size:,} bytes, {file.size:,} were fetched"
        digest = sha256_of(path)
    except OSError as error:  # pruned just now, or somebody else's alone
        return f"can't be read: {error.strerror}"
    return "" if digest == file.sha256 else f"has sha256 {digest}, {file.sha256} was fetched"


class Cache:
    """The folder of fetched checkpoints; several processes may use one at once."""

    def __init__(self, root: Path | None = None):
        self.root = Path(root) if root is not None else home()
        self.refs, self.trees, self.blobs = self.root / "refs", self.root / "trees", self.root / "blobs"
        self.partials, self.stagings, self.locks = self.root / "partial", self.root / "staging", self.root / "locks"
        self.converted = self.root / "converted"

    def __repr__(self) -> str:
        return f"Cache({str(self.root)!r})"

    # --- reading

    def find(self, key: str) -> CacheEntry | None:
        """The entry of a key, if it is there and complete. Takes no lock and writes nothing."""
        entry = self._read(self.refs / f"{key}.json")
        return entry if entry is not None and entry.present() else None

    def _read(self, path: Path) -> CacheEntry | None:
        found = self._parsed(path)
        return found if isinstance(found, CacheEntry) else None

    def _parsed(self, path: Path) -> CacheEntry | Odd:
        """A record, or why it is none: whatever stands in the file."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                return Odd(path, "is no file")
            if (size := path.stat().st_size) > LARGEST_RECORD:
                return Odd(path, f"has {size:,} bytes; a record has at most {LARGEST_RECORD:,}")
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["version"] != VERSION:
                return Odd(path, f"is of version {repr_short(content['version'])}; this zoo knows {VERSION}")
            named = {key: content[key] for key in ("source", "fetched", "tree", "name", "revision")}
            for key, value in named.items():
                if not (isinstance(value, str) or (value is None and key in ("name", "revision"))):
                    return Odd(path, f"{key} is {repr_short(value)}")
            if datetime.datetime.fromisoformat(named["fetched"]).tzinfo is None:
                return Odd(path, f"fetched is {repr_short(named['fetched'])}, without a time zone")
            files = {}
            for name, (size, digest) in content["files"].items():
                if type(size) is not int or not 0 <= size < 1 << 63 or not re.fullmatch("[0-9a-f]{64}", digest):
                    return Odd(path, f"the file {printable(name)!r} has no size and sha256")
                files[safe_path(name)] = Stored(size, digest)
            if not files or not isinstance(content["facts"], dict):
                return Odd(path, "lists no files, or has no facts")
            folder = self.trees / safe_path(named["tree"])
            if folder.parent != self.trees:
                return Odd(path, f"tree is {repr_short(named['tree'])}")
            key, facts = path.name.removesuffix(".json"), content["facts"]
            return CacheEntry(
                key, named["source"], named["name"], named["revision"], named["fetched"], folder, files, facts
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            return Odd(path, f"can't be read: {type(error).__name__}: {repr_short(str(error))}")

    def odd(self) -> list[Odd]:
        """The records that can't be read as such, and nothing can be found by."""
        found = (self._parsed(path) for path in sorted(self.refs.glob("*.json")))
        return [record for record in found if isinstance(record, Odd)]

    def entries(self) -> list[CacheEntry]:
        """Every complete entry, by source."""
        return self._complete(self.refs.glob("*.json"))

    def _complete(self, refs: Iterable[Path]) -> list[CacheEntry]:
        found = [self._read(path) for path in refs]
        return sorted(
            (entry for entry in found if entry is not None and entry.present()),
            key=lambda entry: (entry.source, entry.key),
        )

    def entry_of(self, path: Path) -> CacheEntry | None:
        """The entry that a fetched folder or file belongs to; None for anything outside the
        cache.
        """
        path, trees = Path(path).absolute(), self.trees.absolute()
        if trees not in path.parents:
            return None
        folder = trees / path.relative_to(trees).parts[0]
        # only these are parsed: the others are many, and slow to parse
        naming = [ref for ref in self.refs.glob("*.json") if _mentions(ref, folder.name)]
        return next((entry for entry in self._complete(naming) if entry.folder.absolute() == folder), None)

    # --- writing

    def lock(self, key: str, *, wait: bool = True, waiting: Callable[[], None] | None = None) -> Any:
        return locked(self.locks / f"{key}.lock", wait=wait, waiting=waiting)

    def partial(self, key: str) -> Path:
        """The folder for unfinished downloads of a key; they stay until the entry is published."""
        folder = self.partials / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def staging(self, key: str) -> Iterator[Path]:
        """A fresh folder to collect an entry's files in; needs the key's lock, and clears what a
        killed holder left.
        """
        base = self.stagings / key
        remove(base)
        folder = base / secrets.token_hex(4)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            remove(base)

    def publish(
        self,
        key: str,
        folder: Path,
        *,
        source: str,
        slug: str,
        name: str | None = None,
        revision: str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> CacheEntry:
        """Make a staged folder the entry of its key; from here on it belongs to the cache. Needs
        the key's lock.
        """
        files: dict[str, Stored] = {}
        rights = stat.S_IMODE(folder.stat().st_mode) & 0o444  # who may read follows the umask
        for path in sorted(inner for inner in folder.rglob("*") if inner.is_file()):
            digest = sha256_of(path)
            files[path.relative_to(folder).as_posix()] = Stored(path.stat().st_size, digest)
            self._share(path, digest, rights)
        if not files:
            raise FetchError(f"{source} gave no file at all")
        listing = "".join(f"{file.sha256} {inner}\n" for inner, file in sorted(files.items()))
        tree = f"{slug}-{hashlib.sha256(listing.encode()).hexdigest()[:12]}"
        for inner_folder in {(folder / inner).parent for inner in files}:
            sync(inner_folder)
        content = {
            "version": VERSION,
            "source": source,
            "name": name,
            "revision": revision,
            "fetched": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            "tree": tree,
            "files": {inner: [file.size, file.sha256] for inner, file in files.items()},
            "facts": dict(facts or {}),
        }
        with locked(self.locks / "publish.lock"):
            self._place(folder, self.trees / tree, files)
            write_atomically(self.refs / f"{key}.json", json.dumps(content, indent=1, sort_keys=True).encode())
        remove(self.partials / key)
        entry = self.find(key)
        if entry is None:
            raise FetchError(
                f"{source}: the entry under {self.root} vanished while it was being written; is something else "
                "cleaning it up?"
            )
        return entry

    def _share(self, path: Path, digest: str, rights: int) -> None:
        """Let a staged file and the blob of its hash be one file on disk, where the file system can
        link. Its rights become ``rights``, unless it is somebody else's: then it is copied.
        """
        if stat.S_IMODE(path.stat().st_mode) != rights:
            try:
                os.chmod(path, rights)
            except PermissionError:
                twin = path.with_name(f"{path.name}.{secrets.token_hex(4)}.incomplete")
                shutil.copyfile(path, twin)
                os.chmod(twin, rights)
                os.replace(twin, path)
        sync(path)
        blob = self.blobs / digest
        self.blobs.mkdir(parents=True, exist_ok=True)
        if blob.is_file() and blob.samefile(path):  # a rename between two names of one file leaves both
            return
        try:
            if blob.is_file() and blob.stat().st_size == path.stat().st_size and sha256_of(blob) == digest:
                twin = path.with_name(f"{path.name}.{secrets.token_hex(4)}.incomplete")
                os.link(blob, twin)
                os.replace(twin, path)
            else:
                twin = blob.with_name(f"{digest}.{secrets.token_hex(4)}.incomplete")
                os.link(path, twin)
                os.replace(twin, blob)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            with suppress(OSError):  # no links on this file system: the tree keeps its own copy
                twin.unlink(missing_ok=True)

    def _place(self, folder: Path, tree: Path, files: Mapping[str, Stored]) -> None:
        self.trees.mkdir(parents=True, exist_ok=True)
        if tree.exists():
            whole = all(
                (tree / name).is_file() and (tree / name).stat().st_size == file.size for name, file in files.items()
            )
            if whole and all(sha256_of(tree / name) == file.sha256 for name, file in files.items()):
                return
            trash = self.stagings / f"trash-{secrets.token_hex(4)}"
            trash.parent.mkdir(parents=True, exist_ok=True)
            os.rename(tree, trash)
            os.rename(folder, tree)
            remove(trash)
        else:
            os.rename(folder, tree)
        sync(self.trees)

    def blob(self, digest: str) -> Path | None:
        """The stored file with this sha256, its contents checked now."""
        path = self.blobs / digest
        return path if digest and path.is_file() and sha256_of(path) == digest else None

    # --- keeping

    def _named(self, names: Sequence[str]) -> list[CacheEntry]:
        entries = self.entries()
        if not names:
            return entries
        chosen = []
        for name in names:
            hits = [entry for entry in entries if name in (entry.name, entry.source, entry.key)]
            if not hits:
                known = {known for entry in entries for known in (entry.name, entry.source) if known}
                raise (
                    unknown("cache entry", name, known)
                    if known
                    else UnknownNameError(f"unknown cache entry {name!r}: the cache is empty")
                )
            chosen += hits
        return chosen

    def verify(self, names: Sequence[str] = (), *, drop: bool = False) -> list[Verified]:
        """Hash every file of every entry (or of the named ones) again, and of what was converted from
        them; ``drop`` forgets the damaged, so that they are fetched and converted anew, and records
        that can't be read.
        """
        results = []
        entries = self._named(names)
        if not names:
            listed = {entry.key for entry in entries}
            found = (self._read(path) for path in sorted(self.refs.glob("*.json")))
            entries += [entry for entry in found if entry is not None and entry.key not in listed]
            for record in self.odd():
                results.append(Verified(str(record.path), (record.why,)))
                if drop:
                    with self.lock(record.path.name.removesuffix(".json")):
                        remove(record.path)
        for entry in entries:
            problems = self.damage(entry)
            if problems and drop:
                with self.lock(entry.key):
                    remove(self.refs / f"{entry.key}.json")
            results.append(Verified(entry.source, problems, entry))
        for folder in self.conversions(None if not names else [entry.folder.name for entry in entries]):
            problems = self.damage_made(folder)
            if problems and drop:
                with locked(folder.with_name(f"{folder.name}.lock")):
                    if problems := self.damage_made(folder):  # unless somebody made it anew meanwhile
                        self.discard(folder)
            if problems or folder.exists():
                results.append(Verified(str(folder), problems))
        return results

    def damage(self, entry: CacheEntry, *, besides: Collection[str] = ()) -> tuple[str, ...]:
        """What is wrong with the files of an entry, each hashed now, ``besides`` excepted."""
        found = (
            (name, _difference(entry.folder / name, file)) for name, file in entry.files.items() if name not in besides
        )
        return tuple(f"{name} {said}" for name, said in found if said)

    # --- what was made of fetched files

    def conversions(self, trees: Collection[str] | None = None) -> list[Path]:
        """The folders of converted checkpoints, or of those alone that were made of these trees."""
        folders = [path for path in sorted(self.converted.glob("[!.]*")) if path.is_dir()]
        return [f for f in folders if trees is None or any(f.name.endswith(f"-{tree}") for tree in trees)]

    def damage_made(self, folder: Path) -> tuple[str, ...]:
        """What is wrong with a conversion, all of it hashed now; nothing, where it is gone, or of an
        older zoo, which wrote no hashes.
        """
        from zoo.checkpoints.binding import UNBOUND, damage

        problems = tuple(damage(folder))
        return problems if folder.exists() and problems != (UNBOUND,) else ()

    def discard(self, folder: Path) -> None:
        """Remove a conversion, in one step for those who look; needs its lock."""
        gone = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}{UNFINISHED}")
        try:
            os.rename(folder, gone)
        except OSError:  # it is gone, or somebody else's
            return
        remove(gone)

    def discard_conversions(self, tree: str) -> None:
        """Remove what was made of a tree, so that it is made anew."""
        for folder in self.conversions([tree]):
            with locked(folder.with_name(f"{folder.name}.lock")):
                self.discard(folder)

    def prune(
        self,
        names: Sequence[str] = (),
        *,
        older_than_days: float | None = None,
        everything: bool = False,
        dry_run: bool = False,
    ) -> list[Pruned]:
        """Remove leftovers (of killed downloads and conversions, of replaced entries), conversions
        that are damaged or whose source is gone, and entries: the named ones, the old ones, or all.

        What somebody is fetching, converting or loading just now is left alone.
        """
        pruned: list[Pruned] = []

        def drop(path: Path, reason: str, size: int | None = None) -> None:
            size = _size(path) if size is None else size
            if not dry_run:
                remove(path)
                if path.exists():
                    size, reason = 0, f"{reason}, but it can't be removed"
            pruned.append(Pruned(path, size, reason))

        if not self.root.is_dir():
            return pruned
        now = datetime.datetime.now(datetime.UTC)
        doomed: dict[str, str] = {}
        if names:
            doomed = {entry.key: "named" for entry in self._named(names)}
        elif everything:
            doomed = {path.name.removesuffix(".json"): "everything" for path in self.refs.glob("*.json")}
        elif older_than_days is not None:
            for entry in self.entries():
                age = now - datetime.datetime.fromisoformat(entry.fetched)
                if age > datetime.timedelta(days=older_than_days):
                    doomed[entry.key] = f"fetched {age.days} days ago"
        for path in sorted(self.refs.glob("*.json")):
            record = self._parsed(path)
            if isinstance(record, Odd):
                doomed.setdefault(path.name.removesuffix(".json"), f"no record: {record.why}")
            elif not record.present():
                doomed.setdefault(path.name.removesuffix(".json"), "incomplete")
        leftovers = {
            path.name for folder in (self.partials, self.stagings) if folder.is_dir() for path in folder.iterdir()
        }
        for key in sorted(leftovers | set(doomed)):
            with self.lock(key, wait=False) as held:
                if not held:
                    continue
                if key in doomed:
                    drop(self.refs / f"{key}.json", doomed[key])
                for folder in (self.partials, self.stagings):
                    if (folder / key).exists():
                        drop(folder / key, "unfinished")
                if not dry_run:
                    with suppress(OSError):
                        (self.locks / f"{key}.lock").unlink()
        with locked(self.locks / "publish.lock"):
            gone = {item.path for item in pruned}
            kept = {
                found.folder
                for path in self.refs.glob("*.json")
                if path not in gone and (found := self._read(path)) is not None
            }
            freed: dict[int, int] = {}  # inode -> links that go with unreferenced trees
            for tree in sorted(self.trees.glob("*")):
                if tree not in kept:
                    for file in (inner for inner in tree.rglob("*") if inner.is_file()):
                        freed[file.stat().st_ino] = freed.get(file.stat().st_ino, 0) + 1
                    with unused(tree) as free:
                        if free:
                            drop(tree, "nothing refers to it", 0 if self._linked(tree) else None)
            for blob in sorted(self.blobs.glob("*")):
                try:
                    information = blob.stat()
                except FileNotFoundError:  # somebody who is publishing just now moved it on
                    continue
                if information.st_nlink - (freed.get(information.st_ino, 0) if dry_run else 0) == 1:
                    drop(blob, "no entry holds it")
            for stray in sorted(self.refs.glob("*.incomplete")):
                drop(stray, "unfinished")
            for path in sorted(self.converted.glob(f".*{UNFINISHED}")):
                with suppress(OSError), abandoned(path) as nobodys:
                    if nobodys:
                        drop(path, "unfinished")
            for folder in self.conversions():
                self._prune_conversion(folder, drop, dry_run, "everything" if everything else None, kept)
        return pruned

    def _prune_conversion(
        self,
        folder: Path,
        drop: Callable[[Path, str], None],
        dry_run: bool,
        reason: str | None,
        kept: Collection[Path],
    ) -> None:
        """Remove a conversion for a ``reason``, or where nothing that is kept was its source, or where
        it is damaged; one that is just being made is left alone.
        """
        from zoo.checkpoints.binding import damage

        lock = folder.with_name(f"{folder.name}.lock")
        with locked(lock, wait=False) as held:
            if not held or not folder.exists():
                return
            if reason is None and not (folder / "config.json").is_file():
                return  # nobody's conversion
            sources = (LOCAL, *(f"-{tree.name}" for tree in kept))
            if reason is None and not folder.name.endswith(sources):
                reason = "nothing that is here is its source"
            if reason is None and (problems := damage(folder)):
                reason = problems[0]
            with unused(folder) as free:
                if free and reason is not None:
                    drop(folder, reason)
            if not dry_run:
                with suppress(OSError):
                    lock.unlink()

    def _linked(self, tree: Path) -> bool:
        return any(inner.is_file() and inner.stat().st_nlink > 1 for inner in tree.rglob("*"))
