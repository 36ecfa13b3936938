"""Memory and speed of a conversion: a synthetic sharded checkpoint, against copying the same bytes
from disk to disk.

    python benchmarks/convert_stream.py FOLDER [--gigabytes 6] [--shards 4] [--dtype float16] [--layout tf-bert]

FOLDER needs room for three times the size. The page cache is dropped between the runs where that is
allowed; the result says if it was.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import torch

from zoo.checkpoints.opened import Opened
from zoo.checkpoints.streaming import Destination, convert
from zoo.formats.archive import Info
from zoo.formats.opening import open_archive
from zoo.formats.writer import SafetensorsWriter, nbytes
from zoo.maps import layouts

HIDDEN, VOCABULARY = 4096, 30522


def names_of(num_layers: int) -> dict[str, Info]:
    """Our names and shapes of a wide BERT encoder."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token.weight": (VOCABULARY, HIDDEN),
        "embeddings.position.weight": (512, HIDDEN),
    }
    shapes |= {
        "embeddings.segment.weight": (2, HIDDEN),
        "embeddings.norm.weight": (HIDDEN,),
        "embeddings.norm.bias": (HIDDEN,),
    }
    for i in range(num_layers):
        block = f"encoder.blocks.{i}"
        sizes = {f"attention.{part}": (HIDDEN, HIDDEN) for part in ("query", "key", "value", "output")}
        sizes |= {"feed_forward.up": (4 * HIDDEN, HIDDEN), "feed_forward.down": (HIDDEN, 4 * HIDDEN)}
        for part, shape in sizes.items():
            shapes |= {f"{block}.{part}.weight": shape, f"{block}.{part}.bias": shape[:1]}
        for part in ("attention_norm", "feed_forward_norm"):
            shapes |= {f"{block}.{part}.weight": (HIDDEN,), f"{block}.{part}.bias": (HIDDEN,)}
    return {name: Info(shape) for name, shape in shapes.items()}


class AnonymousMemory(threading.Thread):
    """The peak of this process's anonymous memory, looked at every few milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.stopped = 0, threading.Event()

    @staticmethod
    def now() -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    def run(self) -> None:
        while not self.stopped.wait(0.003):
            self.peak = max(self.peak, self.now())


def drop_cache() -> bool:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def synced_copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb+") as file:
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=6.0)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--layout", default="hf-bert")
    arguments = parser.parse_args()
    layer = sum(nbytes(info) for name, info in names_of(1).items() if name.startswith("encoder"))
    num_layers = max(1, round((arguments.gigabytes * 1e9 - VOCABULARY * HIDDEN * 4) / layer))
    ours, keymap = names_of(num_layers), layouts.load(arguments.layout)
    config: dict[str, object] = {"num_layers": num_layers, "pooler": False, "tie_word_embeddings": True}
    config |= {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "num_heads": 64,
        "intermediate_size": 4 * HIDDEN,
        "max_positions": 512,
    }
    config |= {
        "num_segments": 2,
        "activation": "gelu_tanh",
        "norm_eps": 1e-12,
        "dropout": 0.1,
        "attention_dropout": 0.1,
    }
    config |= {"initializer_range": 0.02, "pad_token_id": 0}
    theirs = keymap.back(ours, config).outputs
    total = sum(nbytes(info) for info in theirs.values())

    source = arguments.folder / "source"
    noise = torch.randn(HIDDEN * 4 * HIDDEN * 2)
    with SafetensorsWriter(
        source / "model.safetensors", theirs, shard_size=-(-total // arguments.shards), durable=False
    ) as writer:
        for name, info in theirs.items():
            writer.write(name, noise[: nbytes(info) // 4].reshape(info.shape))
        files = writer.finish().files
    del noise

    dropped = drop_cache()
    started = time.perf_counter()
    (arguments.folder / "copy").mkdir(exist_ok=True)
    for file in files:
        synced_copy(file, arguments.folder / "copy" / file.name)
    copy_seconds = time.perf_counter() - started
    shutil.rmtree(arguments.folder / "copy")

    drop_cache()
    watch, before = AnonymousMemory(), AnonymousMemory.now()
    watch.start()
    started = time.perf_counter()
    with open_archive(files[0]) as archive:
        out = arguments.folder / "out.safetensors"
        to = Destination(out, arguments.dtype, shard_size=-(-total // arguments.shards))
        report = convert(Opened(archive, keymap, config), ours, to)
    seconds = time.perf_counter() - started
    watch.stopped.set()
    largest = max(nbytes(info) for info in theirs.values())
    result = {
        "bytes": total,
        "files": len(files) - 1,
        "largest_tensor": largest,
        "peak_anonymous_above_start": watch.peak - before,
        "peak_minus_largest": watch.peak - before - largest,
        "seconds": round(seconds, 2),
        "copy_seconds": round(copy_seconds, 2),
        "speed_to_copy": round(copy_seconds / seconds, 3),
        "cache_dropped": dropped,
        "last_check_passed": report.checks.last_passed,
        "torch_threads": torch.get_num_threads(),
        "python": sys.version.split()[0],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
