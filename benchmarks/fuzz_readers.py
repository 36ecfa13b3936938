"""Fuzz every reader with damaged and hostile files: ``python -m benchmarks.fuzz_readers --count
20000``. Checkpoint formats are here; configs, adapters, tokenizers, dumps of regions and knowledge
in ``benchmarks.fuzz_samples``.

Each file is a sample of some format with bits flipped, parts cut, doubled or exchanged, lengths
replaced by lies, or a pickle put together from random opcodes and dangerous names. Opening it,
reading every tensor, ``aliases`` and ``sha256`` may succeed or raise a CheckpointError. Anything
else is a crash. An audit hook stands in the way of everything that a file could make the process
do.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import importlib
import io
import json
import os
import pickle
import pkgutil
import random
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import zoo
from benchmarks import fuzz_samples
from benchmarks.fuzz_samples import Sample
from zoo.errors import CheckpointError, ZooError
from zoo.formats import tensorflow_files
from zoo.formats.opening import open_archive

TENSORFLOW = Path(__file__).parent.parent / "tests" / "golden" / "readers" / "tensorflow"
TOO_BIG = 64 << 20  # an archive that honestly shows more than this is not read whole

# --- the canary -----------------------------------------------------------------------------------------------------

FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename", "os.mkdir",
    "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.putenv", "subprocess.Popen", "socket.connect",
    "socket.bind", "pickle.find_class", "shutil.", "ctypes.", "webbrowser.open", "urllib.Request",
    "marshal.loads", "tempfile.",
)  # fmt: skip


@dataclass
class Canary:
    """Notes every audited event that reading a file must not cause."""

    armed: bool = False
    caught: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes or event.startswith(FORBIDDEN):
            self.caught.append(f"{event} {arguments!r}"[:300])

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.armed = True
        try:
            yield
        finally:
            self.armed = False


_CANARY: list[Canary] = []


def canary() -> Canary:
    """The one audit hook of this process; hooks can't be taken away again."""
    if not _CANARY:
        "".encode("cp437")  # zipfile's codec for old names: Python imports it on first use
        _CANARY.append(Canary())
        sys.addaudithook(_CANARY[0])
    return _CANARY[0]


# --- samples ----------------------------------------------------------------------------------------------------------


def parameters(seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of many dtypes and layouts: views, transposes, ties, empty and scalar ones."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 4, generator=generator)
    return {
        "encoder.weight": weight,
        "encoder.tied": weight,
        "encoder.transposed": weight.t(),
        "encoder.strided": weight[1:5:2, ::3],
        "encoder.half": torch.randn(5, generator=generator).half(),
        "encoder.bfloat": torch.randn(3, 2, generator=generator).bfloat16(),
        "encoder.small": torch.arange(-3, 4, dtype=torch.int8),
        "encoder.flags": torch.tensor([True, False, True]),
        "encoder.long": torch.arange(7),
        "encoder.empty": torch.zeros(0, 3),
        "encoder.scalar": torch.tensor(2.5, dtype=torch.float64),
        "encoder.complex": torch.randn(2, dtype=torch.complex64, generator=generator),
        "encoder.expanded": torch.ones(1).expand(3, 4),
        "encoder.parameter": torch.nn.Parameter(torch.randn(3, generator=generator)),
    }


def checkpoint() -> dict[str, Any]:
    """What training scripts save: a model beside optimiser state, a namespace and plain
    settings.
    """
    state = {0: {"step": 3, "exp_avg": torch.ones(6, 4)}}
    return {
        "model": collections.OrderedDict(parameters()),
        "optimizer": {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0]}]},
        "args": argparse.Namespace(layers=2, names=["a", "b"]),
        "extra_state": {"epoch": 3, "note": "é"},
    }


def lod_tensor(array: np.ndarray[Any, Any]) -> bytes:
    """A dense parameter as paddle 1.x writes it."""
    kinds = {"float32": 5, "int64": 3, "float16": 4}
    description = b"\x08" + bytes([kinds[str(array.dtype)]]) + b"".join(b"\x10" + bytes([size]) for size in array.shape)
    return struct.pack("<IQIi", 0, 0, 0, len(description)) + description + array.tobytes()


def onnx_model(*, int8: bool = False) -> bytes:
    """A linear layer as torch exports it: an anonymous transposed weight, a named bias; with
    ``int8``, a dequantised weight.
    """

    def number(value: int) -> bytes:
        out = b""
        while value >= 0x80:
            out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
        return out + bytes([value])

    def part(tag: int, value: bytes | str | int) -> bytes:
        if isinstance(value, int):
            return number(tag << 3) + number(value)
        raw = value.encode() if isinstance(value, str) else value
        return number(tag << 3 | 2) + number(len(raw)) + raw

    def tensor(name: str, array: np.ndarray[Any, Any], kind: int) -> bytes:
        return part(
            5,
            b"".join(part(1, size) for size in array.shape) + part(2, kind) + part(8, name) + part(9, array.tobytes()),
        )

    def node(op: str, name: str, inputs: list[str], outputs: list[str]) -> bytes:
        return part(
            1,
            b"".join(part(1, i) for i in inputs) + b"".join(part(2, o) for o in outputs) + part(3, name) + part(4, op),
        )

    rng = np.random.default_rng(1)
    weight, bias = rng.standard_normal((3, 2)).astype(np.float32), rng.standard_normal(2).astype(np.float32)
    scale = np.abs(weight).max(0) / 127
    if int8:
        graph = node("DequantizeLinear", "dequantize", ["w_quantized", "w_scale", "w_zero_point"], ["w"])
        graph += tensor("w_quantized", np.round(weight / scale).astype(np.int8), 3) + tensor("w_scale", scale, 1)
        graph += tensor("w_zero_point", np.zeros(2, np.int8), 3)
    else:
        graph = tensor("onnx::MatMul_7", weight, 1)
    graph += node("MatMul", "/encoder/dense/MatMul", ["x", "w" if int8 else "onnx::MatMul_7"], ["product"])
    graph += node("Add", "/encoder/dense/Add", ["encoder.dense.bias", "product"], ["y"])
    graph += tensor("encoder.dense.bias", bias, 1) + tensor("onnx::shape", np.array([1, 2], np.int64), 7)
    return part(1, 8) + part(2, "pytorch") + part(7, graph) + part(8, part(2, 17))


def build_samples(folder: Path) -> dict[str, Path]:
    """One small checkpoint of every format under ``folder``: name -> file or folder to open."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().clone().contiguous() for name, tensor in parameters().items()}
    samples: dict[str, Path] = {}

    def add(name: str, file: str | None = None) -> Path:
        samples[name] = folder / name / file if file else folder / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if file:
            (folder / name).mkdir()
        return samples[name]

    save_file(plain, add("plain.safetensors"), metadata={"format": "pt"})
    torch.save(checkpoint(), add("zip.pt"))
    torch.save(checkpoint(), add("legacy.pt"), _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(torch.nn.TransformerEncoderLayer(4, 2, 8), add("module.pt"), _use_new_zipfile_serialization=False)
        torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))).save(str(add("script.pt")))
    index = add("sharded", "model.safetensors.index.json")
    names = list(plain)
    for i, part in enumerate((names[:7], names[7:])):
        save_file({name: plain[name] for name in part}, index.parent / f"model-{i}.safetensors")
        torch.save({name: plain[name] for name in part}, index.parent / f"part-{i}.bin")
    for file, kind in (
        ("model.safetensors.index.json", "model-{}.safetensors"),
        ("torch.bin.index.json", "part-{}.bin"),
    ):
        weight_map = {name: kind.format(int(i >= 7)) for i, name in enumerate(names)}
        (index.parent / file).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    samples["sharded torch"] = index.parent / "torch.bin.index.json"
    shutil.copytree(TENSORFLOW, folder / "tensorflow")
    samples["tensorflow"] = folder / "tensorflow" / "bert_model.ckpt.index"
    arrays = {
        name.replace(".", "_"): tensor.numpy() for name, tensor in plain.items() if tensor.dtype != torch.bfloat16
    }
    np.savez(add("stored.npz"), **arrays)  # type: ignore[arg-type]
    np.savez_compressed(add("packed.npz"), **arrays)  # type: ignore[arg-type]
    np.save(add("one.npy"), np.asfortranarray(arrays["encoder_weight"]))
    for protocol in (2, 4):
        state: dict[str, Any] = {name: (name + "_0", array) for name, array in arrays.items()}
        state["StructuredToParameterName@@"] = {name: name + "_0" for name in arrays}
        state |= {
            "big@@.0": np.arange(4.0),
            "big@@.1": np.arange(2.0),
            "UnpackBigParamInfor@@": {"big": {"OriginShape": (2, 3), "slices": ["big@@.0", "big@@.1"]}},
        }
        add(f"paddle{protocol}.pdparams").write_bytes(pickle.dumps(state, protocol))
    for name, array in (
        ("word_embedding", arrays["encoder_weight"]),
        ("fc.w_0", arrays["encoder_long"]),
        ("fc.b_0", arrays["encoder_half"]),
    ):
        file = folder / "paddle1" / "params" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lod_tensor(array))
    samples["paddle1"] = folder / "paddle1"
    for rank in range(2):
        file = folder / "megatron" / f"mp_rank_{rank:02d}_model_states.pt"
        file.parent.mkdir(exist_ok=True)
        torch.save({"module": parameters(rank), "iteration": 7}, file)
    samples["megatron"] = folder / "megatron"
    for name, mode in (("mmf.tar.gz", "w:gz"), ("mmf.tar", "w")):
        with tarfile.open(add(name), mode) as tar:
            tar.add(samples["zip.pt"], "./model.pth")
            config = b"model_config:\n  visual_bert:\n    hidden_size: 4\n"
            tar.addfile(_tar_info("./config.yaml", len(config)), io.BytesIO(config))
    with zipfile.ZipFile(add("bert.zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(TENSORFLOW.glob("bert_model*")):
            archive.write(file, f"uncased/{file.name}")
        archive.writestr("uncased/bert_config.json", "{}")
    add("model.onnx").write_bytes(onnx_model())
    add("int8.onnx").write_bytes(onnx_model(int8=True))
    return samples


def _tar_info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    return info


# --- damage -----------------------------------------------------------------------------------------------------------

LIES = [
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 62) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]
NAMES = [
    b"os\nsystem\n", b"posix\nsystem\n", b"builtins\neval\n", b"builtins\nexec\n", b"builtins\n__import__\n",
    b"builtins\ngetattr\n", b"subprocess\nPopen\n", b"__builtin__\neval\n", b"torch._utils\n_rebuild_tensor_v2\n",
    b"torch._utils\n_rebuild_tensor_v3\n", b"torch._utils\n_rebuild_parameter\n", b"torch._utils\n_rebuild_qtensor\n",
    b"torch._tensor\n_rebuild_from_type_v2\n", b"torch\nFloatStorage\n", b"torch.storage\n_load_from_bytes\n",
    b"collections\nOrderedDict\n", b"collections\ndefaultdict\n", b"builtins\nlist\n", b"builtins\nset\n",
    b"builtins\ntuple\n", b"builtins\nbytes\n", b"_codecs\nencode\n", b"numpy.core.multiarray\n_reconstruct\n",
    b"numpy.core.multiarray\nscalar\n",
    b"numpy.core.numeric\n_frombuffer\n", b"numpy\ndtype\n", b"numpy\nndarray\n", b"argparse\nNamespace\n",
    b"copyreg\n_reconstructor\n",
]  # fmt: skip
TEXTS = [
    b"echo boom > canary",
    b"__import__('os').system('echo boom > canary')",
    b"f4",
    b"<",
    b"latin1",
    b"data",
    b"storage",
    b"0",
    b"cpu",
    b"a.b",
]


def random_pickle(rng: random.Random) -> bytes:
    """A pickle from random opcodes: mostly well-formed operands, so that it gets far."""
    out = bytearray(b"\x80\x02")
    for _ in range(rng.randrange(1, 120)):
        choice = rng.randrange(20)
        text = rng.choice(TEXTS)
        if choice < 3:
            out += b"c" + rng.choice(NAMES)
        elif choice < 5:
            out += b"X" + struct.pack("<I", len(text)) + text
        elif choice < 6:
            out += b"C" + bytes([len(text)]) + text
        elif choice < 7:
            out += b"J" + struct.pack("<i", rng.choice([0, 1, 2, -1, 1 << 30]))
        elif choice < 8:
            out += b"K" + bytes([rng.randrange(4)])
        elif choice < 9:
            out += rng.choice([b"B", b"T", b"X", b"\x8b", b"r", b"j"]) + struct.pack(
                "<I", rng.choice(LIES) & 0xFFFFFFFF
            )
        elif choice < 10:
            out += rng.choice([b"\x8d", b"\x8e", b"\x95", b"\x96"]) + struct.pack("<Q", rng.choice(LIES))
        elif choice < 11:
            out += rng.choice([b"q", b"h"]) + bytes([rng.randrange(8)])
        else:
            out += bytes([rng.choice(b"()]}N\x88\x89t\x85\x86\x87RRRRb\x81\x92\x93aesu\x8f\x90\x91dlo012Q\x94.")])
    return bytes(out) + b"."


def mutate(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to four changes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(out) + 1)
        if rng.random() < 0.4:  # headers and tables lie at the ends
            at = min(len(out), rng.randrange(200)) if rng.random() < 0.5 else max(0, len(out) - rng.randrange(200))
        match rng.randrange(10):
            case 0 | 1 if out:
                out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
            case 2 if out:
                out[min(at, len(out) - 1)] = rng.choice((0, 1, 0x2E, 0x52, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                del out[at:]
            case 4:
                del out[at : at + rng.choice((1, 2, 4, 8, 64))]
            case 5:
                size = rng.choice((1, 2, 4, 8))
                out[at : at + size] = (rng.choice(LIES) & ((1 << 8 * size) - 1)).to_bytes(
                    size, rng.choice(("little", "big"))
                )  # type: ignore[arg-type]
            case 6:
                start = rng.randrange(len(out) + 1)
                out[at:at] = out[start : start + rng.choice((1, 8, 64, 1024))]
            case 7:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                out[at : at + 64] = other[start : start + 64]
            case 8:
                out[at:at] = rng.randbytes(rng.choice((1, 3, 16)))
            case _:
                for old, new in (
                    (b'"', b"{"),
                    (b"0", b"9"),
                    (b",", b"[[[["),
                    (b"data_offsets", b"shape"),
                    (b"F32", b"F64"),
                    (b"model-0", b"../../../m"),
                ):
                    if old in out and rng.random() < 0.3:
                        where = out.find(old, rng.randrange(len(out)))
                        if where >= 0:
                            out[where : where + len(old)] = new
    return bytes(out)


def damaged(rng: random.Random, name: str, data: bytes, others: list[bytes]) -> bytes:
    """A damaged sample; where a format wraps its content (a header's length, zip, gzip), half of
    the damage is done inside the wrapping.
    """
    inside = rng.random() < 0.5
    if inside and name.endswith(".safetensors") and len(data) > 8:
        size = int.from_bytes(data[:8], "little")
        header = mutate(rng, data[8 : 8 + size], others)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    if inside and name.endswith(".gz"):
        return gzip.compress(mutate(rng, gzip.decompress(data), others), 1)
    if inside and data[:4] == b"PK\x03\x04":
        return _damaged_zip(rng, data, others)
    if rng.random() < 0.15 and name.endswith((".pt", ".pdparams")):
        return random_pickle(rng)
    return mutate(rng, data, others)


def _damaged_zip(rng: random.Random, data: bytes, others: list[bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        infos = source.infolist()
        pickles = [info for info in infos if info.filename.endswith(".pkl")]
        victim = rng.choice(pickles if pickles and rng.random() < 0.6 else infos)
        for info in infos:
            content = source.read(info)
            name = info.filename
            if info is victim:
                match rng.randrange(8):
                    case 0:
                        continue
                    case 1:
                        name = rng.choice(("../" + name, name + "x", "/etc/" + name, name.upper()))
                    case 2:
                        out.writestr(name, content)
                    case 3 if name.endswith(".pkl"):
                        content = random_pickle(rng)
                    case 4:
                        content = bytes(rng.choice((0, 1, 1 << 20)))
                    case _:
                        content = mutate(rng, content, others)
            out.writestr(
                name, content, compress_type=rng.choice((info.compress_type, info.compress_type, zipfile.ZIP_DEFLATED))
            )
    return target.getvalue()


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What happened to how many files."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)
    by_sample: collections.Counter[str] = field(default_factory=collections.Counter)
    caught_by_net: collections.Counter[str] = field(default_factory=collections.Counter)
    crashes: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    peak_growth: tuple[int, str] = (0, "")  # KiB


def attempt(path: Path, group: str | None = None) -> str:
    """Read everything in a file: ``"read"`` or the refusal."""
    try:
        with open_archive(path, group=group) as archive:
            if sum(info.nbytes for info in archive.tensors.values()) <= TOO_BIG:
                for name in archive.tensors:
                    archive.read(name)
            archive.aliases()
            archive.sha256()
            repr((archive.metadata, archive.refused))
    except CheckpointError as error:
        return str(error)
    return "read"


def attempt_other(sample: Sample) -> str:
    """Read a sample of another kind: ``"read"`` or the refusal."""
    try:
        sample.read(sample.path)
    except ZooError as error:
        return str(error)
    return "read"


def forked(attempted: Callable[[], str]) -> str:
    """The same in a process of its own, which a library in C may end: ``"died"``, or ``"raw"`` and
    what was raised.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if not child:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
            said = attempted()
        except BaseException:
            said = "raw " + traceback.format_exc()
        os.write(sending, said.encode("utf-8", "replace")[:60_000])
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return said or "died"


def targets(samples: dict[str, Path]) -> list[tuple[str, Path, Path]]:
    """(sample, what to open, which file to damage)."""
    found: list[tuple[str, Path, Path]] = []
    for name, path in samples.items():
        if path.is_dir():
            found += [(name, path, file) for file in sorted(path.rglob("*")) if file.is_file()]
        elif name in ("sharded", "sharded torch", "tensorflow"):
            found += [(name, path, file) for file in sorted(path.parent.iterdir()) if file.suffix != ".npz"]
        else:
            found.append((name, path, path))
    return found


def run(
    count: int,
    seed: int,
    *,
    keep: Path | None = None,
    others: bool = False,
    only: Callable[[str], bool] = lambda name: True,
    progress: Callable[[int, Report], None] = lambda done, report: None,
) -> Report:
    """Damage and open ``count`` files; with ``others`` of every kind that is read, without them of
    checkpoint formats. ``only``: which samples, by their names.
    """
    rng = random.Random(seed)
    report = Report()
    watch = canary()
    checked = tensorflow_files.check_sum
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        samples = build_samples(root / "samples")
        victims = targets(samples)
        more = fuzz_samples.build(root / "others") if others else {}
        for name, sample in more.items():
            victims += [(name, sample.path, file) for file in sorted(sample.path.rglob("*")) if file.is_file()]
            if (outcome := attempt_other(sample)) != "read":
                raise AssertionError(f"the undamaged sample {name} is refused: {outcome}")
        content = {file: file.read_bytes() for _, _, file in victims}
        pool = list(content.values())
        by_name: dict[str, list[tuple[str, Path, Path]]] = {}
        for victim in victims:
            if only(victim[0]):
                by_name.setdefault(victim[0], []).append(victim)
        for name, path in samples.items():
            if (outcome := attempt(path)) != "read":
                raise AssertionError(f"the undamaged sample {name} is refused: {outcome}")
        if others:  # what is imported when it is first needed is no doing of a file
            for module in pkgutil.walk_packages(zoo.__path__, "zoo."):
                if not module.name.endswith("__main__"):
                    importlib.import_module(module.name)
        before = set(root.rglob("*"))
        for done in range(count):
            name, opened, file = rng.choice(by_name[rng.choice(list(by_name))] if others else victims)
            data = damaged(rng, file.name, content[file], pool)
            file.write_bytes(data)
            tensorflow_files.check_sum = checked if rng.random() < 0.5 else (lambda data, stored: None)
            peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
            try:
                group = rng.choice((None, None, None, ""))
                sample = more.get(name)
                if sample is None:
                    with watch.watching():
                        outcome = attempt(opened, group)
                elif sample.forked:
                    outcome = forked(lambda sample=sample: attempt_other(sample))  # type: ignore[misc]
                else:
                    with watch.watching():
                        outcome = attempt_other(sample)
                if outcome == "died":
                    report.deaths.append(f"{done} {name} {file.name}")
                elif outcome.startswith("raw "):
                    raise RuntimeError(outcome)
            except Exception:
                outcome = "crash"
                report.crashes.append(f"{done} {name} {file.name}\n{traceback.format_exc()}")
                if keep:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{done}-{file.name}").write_bytes(data)
            took, growth = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
            report.slowest = max(report.slowest, (took, f"{done} {name}"))
            report.peak_growth = max(report.peak_growth, (growth, f"{done} {name}"))
            if watch.caught:
                report.crashes.append(f"{done} {name} {file.name}: the file made the process do {watch.caught[:3]}")
                watch.caught.clear()
            report.outcomes[outcome if outcome in ("read", "crash", "died") else "refused"] += 1
            report.by_sample[name] += 1
            if "damaged or not a checkpoint (" in outcome:
                report.caught_by_net[outcome.partition("damaged or not a checkpoint (")[2][:60]] += 1
            file.write_bytes(content[file])
            progress(done + 1, report)
        left = set(root.rglob("*")) - before
        tensorflow_files.check_sum = checked
    if left:
        report.crashes.append(f"files were left behind: {sorted(left)[:5]}")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the files that crash a reader")
    parser.add_argument("--checkpoints", action="store_true", help="checkpoint formats alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()

    def progress(done: int, report: Report) -> None:
        if done % 1000 == 0:
            print(
                f"{done} files, {dict(report.outcomes)}, {time.perf_counter() - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    report = run(options.count, options.seed, keep=options.keep, others=not options.checkpoints, progress=progress)
    figures = SimpleNamespace(
        files=options.count,
        seed=options.seed,
        outcomes=dict(report.outcomes),
        crashes=len(report.crashes),
        deaths=len(report.deaths),
        by_sample=dict(report.by_sample),
        explained_only_by_the_net=sum(report.caught_by_net.values()),
        seconds=round(time.perf_counter() - start, 1),
        slowest_file_seconds=round(report.slowest[0], 3),
        slowest_file=report.slowest[1],
        peak_rss_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        largest_growth_of_peak_mib=round(report.peak_growth[0] / 1024, 1),
    )
    print(json.dumps(vars(figures), indent=1))
    for line, times in report.caught_by_net.most_common(12):
        print(f"net: {times} x {line}")
    for crash in report.crashes[:60]:
        print(crash)
    for death in report.deaths[:10]:
        print(f"died: {death}")
    return 1 if report.crashes or report.deaths else 0


if __name__ == "__main__":
    sys.exit(main())
