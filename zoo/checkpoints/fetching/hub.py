"""Files of a model on the Hugging Face hub, with what belongs beside them."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo.checkpoints.fetching.cache import remove
from zoo.checkpoints.fetching.jobs import PATIENCE, Fetched, Job, link_or_copy, listed, storage_full
from zoo.errors import FetchError
from zoo.formats.disk import safe_path, sha256_of

_reached: dict[str, tuple[str | None, float]] = {}
_reach_lock = threading.Lock()


def _unreachable(endpoint: str) -> str | None:
    """Why the hub can't be reached, None if it can: one short probe per process (a failure is
    forgotten after five minutes).
    """
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


COMPANIONS = re.compile(  # files that may belong to a checkpoint
    r"[^/]+\.(json|txt|model|codes|vocab|jsonl)|[0-9]+_[A-Za-z]+/(config\.json|model\.safetensors|pytorch_model\.bin)"
)
NO_COMPANION = re.compile(
    r".*(flax|tf_model|onnx|openvino|rust_model|\.msgpack|\.h5).*|data_config\.json|training_args.*|README.*|.*\.index\.json",
    re.IGNORECASE,
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
            raise FetchError(f"{repository} has no one checkpoint; say which by #file. It holds {listed(names)}")
        checkpoint = single
    beside = sorted(
        name
        for name in names
        if COMPANIONS.fullmatch(name) and not NO_COMPANION.fullmatch(name) and name not in checkpoint
    )
    return [*checkpoint, *beside]


def fetch_hub(job: Job) -> Fetched:
    """Let huggingface_hub do the downloading, at one commit, and hold every file against what the
    hub says of it.
    """
    source = job.source
    if job.offline:
        return _from_hub_cache(job)
    endpoint = _endpoint()
    if (reason := _unreachable(endpoint)) is not None:
        try:
            return _from_hub_cache(job)
        except FetchError:
            raise FetchError(f"the hub at {endpoint} can't be reached ({reason})") from None
    from huggingface_hub import HfApi, hf_hub_download

    pause = PATIENCE.pause
    for attempt in range(PATIENCE.tries):
        try:
            info = HfApi(endpoint=endpoint).model_info(
                source.place, revision=source.version, files_metadata=True, timeout=PATIENCE.timeout
            )
            break
        except Exception as error:  # the library passes on what its transport raises
            if attempt + 1 == PATIENCE.tries or not _temporary(error):
                raise FetchError(_hub_message(error, source.place, source.version)) from error
            time.sleep(min(pause * 2**attempt, 8.0))
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if job.want.files:
        missing = [name for name in job.want.files if name not in siblings]
        if missing:
            raise FetchError(f"{source.place} has no {', '.join(missing)} at {info.sha}; it holds {listed(siblings)}")
        names = [*job.want.files, *(name for name in job.want.optional if name in siblings)]
    else:
        names = _choose(siblings, source.place)
    place = job.cache.partial(job.key) / "hub"
    size = sum(siblings[name].size or 0 for name in names)
    if size > shutil.disk_usage(job.cache.root).free:
        raise storage_full(job.cache.root, source, needed=size)
    with _bars(not job.quiet):
        for name in names:
            job.tell(name, 0, siblings[name].size)
            try:
                path = Path(
                    hf_hub_download(
                        source.place, safe_path(name), revision=info.sha, local_dir=place, endpoint=endpoint
                    )
                )
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
            link_or_copy(path, job.folder / name)
    return info.sha, {"endpoint": endpoint}


def _differs(path: Path, sibling: Any) -> str | None:
    """How a file differs from what the hub says of it: its size, the sha256 of a large file, the
    git hash of a small one.
    """
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


def _from_hub_cache(job: Job) -> Fetched:
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
