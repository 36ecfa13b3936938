"""Checkpoints that are several files: tar and zip archives (read in place, nothing is written to
disk) and folders.

A bundle is a set of named byte strings. ``choose`` picks the checkpoint in it; small config files
beside it become metadata as text.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path

from zoo.errors import CheckpointError
from zoo.formats.archive import Archive, Entry
from zoo.formats.buffers import BufferFile, Member
from zoo.formats.disk import plain_name
from zoo.formats.limits import MIB, check_expansion, printable

SINGLES = ("model.safetensors", "pytorch_model.bin")
INDEXES = (".safetensors.index.json", ".bin.index.json")
SUFFIXES: tuple[str, ...] = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".th", ".model", ".npz", ".npy")
SUFFIXES += (".pdparams", ".pkl", ".onnx", ".pth.tar")
OTHERS = ("tf_model.h5", "flax_model.msgpack")  # taken where nothing else is there
NOT_MODELS = re.compile(
    r"^(training_args|trainer_state|optim|sched|scaler|random_states|rng_state)|(spiece|sentencepiece|spm|bpe|30k-clean).*\.model$"
)
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
MAX_CONFIG = MIB
MAX_MEMBERS = 100_000
MAX_TAR_RECORD = 4 * MIB
MAX_STEP = 200  # bytes of the name of a run's last checkpoint
RANK = re.compile(r"^mp_rank_(\d\d)(?:_model_states\.pt|/model_optim_rng\.pt|/model_states\.pt)$")

ZERO = re.compile(r"^(zero|bf16_zero)_pp_rank_\d+_mp_rank_\d+_(model|optim)_states\.pt$")

Bytes = Callable[[], memoryview]
OpenOne = Callable[[str], Archive]  # the archive of one file of the bundle


def choose(names: Iterable[str], what: str) -> str:
    """The one checkpoint among the files, in the order of transformers: ``model.safetensors``, an index
    of its shards, ``pytorch_model.bin``, an index of its shards; then the rest.
    """
    names = list(names)
    shallow = min((name.count("/") for name in names if name.endswith((*INDEXES, ".index", *SUFFIXES))), default=0)
    here = [name for name in names if name.count("/") == shallow]
    for single, index in zip(SINGLES, INDEXES, strict=True):  # shards beside a single file are an older save's
        if found := [name for name in here if name.rpartition("/")[2] == single]:
            return _only(found, what)
        if found := [name for name in here if name.endswith(index)]:
            return _only(found, what)
    if found := [
        name
        for name in here
        if name.endswith(".index") and any(other.startswith(name[:-6] + ".data-") for other in here)
    ]:
        return _only(found, what)
    found = [name for name in here if name.endswith(SUFFIXES) and not NOT_MODELS.search(name.rpartition("/")[2])]
    if not found:
        found = next(([one] for other in OTHERS for one in names if one.rpartition("/")[2] == other), [])
    return _only(found, what)


def _only(found: list[str], what: str) -> str:
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(
            f"{what} holds no checkpoint that is known by its name; looked for names that end in "
            f"{', '.join(SUFFIXES)}, .index, and for {' and '.join(OTHERS)}"
        )
    shown = ", ".join(printable(name, 80) for name in sorted(found)[:8])
    raise CheckpointError(f"{what} holds {len(found)} checkpoints: {shown}; name the file that is meant")


def configs(files: Mapping[str, tuple[int, Bytes]], chosen: str) -> dict[str, str]:
    """The text of the small config files beside the chosen one, by name."""
    folder = chosen.rpartition("/")[0]
    texts: dict[str, str] = {}
    for name, (size, data) in files.items():
        parent, _, file = name.rpartition("/")
        if (
            parent == folder
            and file.endswith(CONFIG_SUFFIXES)
            and size <= MAX_CONFIG
            and name != chosen
            and len(texts) < 32
        ):
            try:
                texts[file] = str(data(), "utf-8-sig")
            except UnicodeDecodeError as error:
                raise CheckpointError(f"the config file {printable(file)!r} is not UTF-8") from error
    return texts


# --- tar


def is_tar(data: memoryview) -> bool:
    return bytes(data[257:262]) == b"ustar"


def is_gzip(data: memoryview) -> bool:
    return bytes(data[:3]) == b"\x1f\x8b\x08"


class _Unzipped(BufferFile):
    """A forward-only file over gzip data that counts what comes out."""

    def __init__(self, data: memoryview, what: str):
        super().__init__(data, MAX_TAR_RECORD)
        self._source, self._what = data, what
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._taken, self._given, self._pending = 0, 0, b""

    def seekable(self) -> bool:
        return False

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MAX_TAR_RECORD:
            raise CheckpointError(
                f"{self._what} announces a record of {size} bytes; at most {MAX_TAR_RECORD} are read at once"
            )
        out = bytearray()
        while len(out) < size:
            if self._unpacker.eof:  # gzip files may be several in a row
                if not self._unpacker.unused_data and self._taken >= len(self._source):
                    break
                self._pending = self._unpacker.unused_data
                self._unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
            if not self._pending:
                self._pending = bytes(self._source[self._taken : self._taken + 65536])
                self._taken += len(self._pending)
                if not self._pending:
                    raise CheckpointError(f"{self._what} ends in the middle of its gzip stream: it is truncated")
            out += self._unpacker.decompress(self._pending, size - len(out))
            self._pending = self._unpacker.unconsumed_tail
        self._given += len(out)
        check_expansion(self._what, self._given, len(self._source))
        return bytes(out)


def tar_files(data: memoryview, what: str) -> dict[str, tuple[int, Bytes]]:
    """The regular files of a tar: shown in place, or, where it is gzipped, those that matter
    unpacked into memory.
    """
    files: dict[str, tuple[int, Bytes]] = {}
    packed = is_gzip(data)
    stream = _Unzipped(data, what) if packed else BufferFile(data, MAX_TAR_RECORD)
    try:
        with tarfile.open(fileobj=stream, mode="r|" if packed else "r:", bufsize=1 << 16) as tar:
            for count, info in enumerate(tar):
                if count >= MAX_MEMBERS:
                    raise CheckpointError(f"{what} holds more than {MAX_MEMBERS} files")
                name = info.name.removeprefix("./")
                if not info.isreg() or info.issparse() or "._" in name.rpartition("/")[2][:2]:
                    continue
                if name in files:
                    raise CheckpointError(f"{what} holds two files called {printable(name)!r}")
                if not packed:
                    if info.offset_data + info.size > len(data):
                        raise CheckpointError(
                            f"{what}: the file {printable(name)!r} reaches beyond its end: it is truncated"
                        )
                    part = data[info.offset_data : info.offset_data + info.size]
                elif name.endswith((*SUFFIXES, ".index", *INDEXES, *CONFIG_SUFFIXES)) or ".data-" in name:
                    part = _unpacked(tar, info, what)
                else:
                    continue
                files[name] = (len(part), lambda part=part: part)  # type: ignore[misc]
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
    except (tarfile.TarError, zlib.error) as error:
        raise CheckpointError(f"{what} is a damaged or truncated tar archive: {error}") from error
    return files


def _unpacked(tar: tarfile.TarFile, info: tarfile.TarInfo, what: str) -> memoryview:
    source = tar.extractfile(info)
    out = bytearray()
    while source is not None and len(out) < info.size:
        chunk = source.read(min(MIB, info.size - len(out)))
        if not chunk:
            break
        out += chunk
    if len(out) != info.size:
        raise CheckpointError(
            f"{what}: the file {printable(info.name)!r} has {len(out)} of its {info.size} bytes: the archive is "
            "truncated"
        )
    return memoryview(out)


def zip_files(members: Mapping[str, Member]) -> dict[str, tuple[int, Bytes]]:
    return {
        name: (member.size, cache(member.open)) for name, member in members.items() if not name.startswith("__MACOSX/")
    }


# --- folders of ranks


def ranks(names: Iterable[str]) -> dict[int, str]:
    """The files of a Megatron checkpoint that was split over several GPUs, by rank."""
    return {int(found[1]): name for name in names if (found := RANK.match(name))}


def refuse_shares(names: Iterable[str], path: Path) -> None:
    """Refuse a folder in which each process of a training run wrote its share of each tensor."""
    names = list(names)
    if any(name.endswith(".distcp") for name in names):
        raise CheckpointError(
            f"{path} holds shares of torch.distributed.checkpoint without the .metadata that says which is which.\n"
            "Copy the whole folder, hidden files too; or join it where it was written: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {path} model.pt"
        )
    if any(ZERO.match(name) for name in names) and not any(RANK.match(name) for name in names):
        raise CheckpointError(
            f"{path} is a checkpoint of DeepSpeed with ZeRO stage 3, in which each process wrote its share.\n"
            "Join them first, with the script that DeepSpeed puts beside it: python zero_to_fp32.py . model.bin"
        )


def latest_of(names: Iterable[str], path: Path) -> str:
    """The folder of the last checkpoint in the folder of a DeepSpeed run, which its file ``latest``
    names; empty for other folders.
    """
    names = list(names)
    if "latest" not in names or any(name.endswith(SUFFIXES) for name in names):
        return ""
    written = (path / "latest").read_bytes()[: MAX_STEP + 1]
    step = plain_name(str(written, "utf-8").strip(), path / "latest") if len(written) <= MAX_STEP else ""
    if not (path / step).is_dir() or (path / step).is_symlink() or not step:
        raise CheckpointError(
            f"{path} is the folder of a DeepSpeed run whose file 'latest' names {printable(step)!r}, which is no "
            "folder there.\nOpen the folder of one checkpoint, or join it: python zero_to_fp32.py . model.bin"
        )
    return step


def read_ranks(path: Path, files: Mapping[int, str], open_one: OpenOne) -> Archive:
    """All ranks in one archive, each tensor called ``mp_rank_00.<name>``; joining them is the map's
    work.
    """
    if sorted(files) != list(range(len(files))):
        raise CheckpointError(f"{path} holds the ranks {sorted(files)}; a rank is missing")
    archives = {rank: open_one(files[rank]) for rank in sorted(files)}
    first = archives[0]
    entries: dict[str, Entry] = {}
    for rank, archive in archives.items():
        if set(archive.tensors) != set(first.tensors):
            odd = sorted(set(archive.tensors) ^ set(first.tensors))[0]
            raise CheckpointError(f"{path}: rank {rank} and rank 0 hold different tensors, for instance {odd!r}")
        for name, entry in archive.entries.items():
            entries[f"mp_rank_{rank:02d}.{name}"] = Entry(
                entry.info, entry.load, None if entry.place is None else (rank, entry.place)
            )
    return Archive(
        path,
        "megatron",
        entries,
        metadata=first.metadata,
        refused=[f"{line} in {files[rank]}" for rank, archive in archives.items() for line in archive.refused],
        groups=first.groups,
        group=first.group,
        files=[path / name for name in files.values()] if path.is_dir() else (),
    )
