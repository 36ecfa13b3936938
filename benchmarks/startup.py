"""How long one waits before anything happens: import, list, create, load.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from benchmarks.timing import machine, table

SNIPPETS = {
    "import zoo": "import zoo",
    "import torch (for comparison)": "import torch",
    "zoo list": "import sys; sys.argv = ['zoo', 'list']; from zoo.cli.app import app; app(standalone_mode=False)",
}
AFTER_TORCH = {
    'zoo.create("albert-base")': ("import torch, zoo", "zoo.create('albert-base')"),
    "load MiniLM, zoo": (
        "import torch, zoo; name = 'minilm-l6-h384.all-minilm-l6-v2'; zoo.create(name, pretrained=True)",
        "zoo.create(name, pretrained=True)",
    ),
    "load MiniLM, transformers": (
        "import torch, zoo; from transformers import BertModel; from zoo.checkpoints.locate import locate; "
        "path = str(locate('minilm-l6-h384.all-minilm-l6-v2')[0]); BertModel.from_pretrained(path)",
        "BertModel.from_pretrained(path)",
    ),
}


def whole(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (time.perf_counter() - start) * 1000


def inside(setup: str, code: str) -> float:
    program = f"{setup}\nimport time\nstart = time.perf_counter()\n{code}\nprint((time.perf_counter() - start) * 1000)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    print(machine())
    nothing = statistics.median(whole("pass") for _ in range(7))
    rows = [["python -c pass", f"{nothing:.0f}"]]
    rows += [[name, f"{statistics.median(whole(code) for _ in range(7)):.0f}"] for name, code in SNIPPETS.items()]
    rows += [[name, f"{statistics.median(inside(*pair) for _ in range(5)):.0f}"] for name, pair in AFTER_TORCH.items()]
    table("start-up, ms (whole processes above, single calls after their imports below)", ["what", "ms"], rows)
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, zoo; print(len(sys.modules), 'torch' in sys.modules)"], capture_output=True
    )
    print(f"\nmodules after import zoo, torch among them: {loaded.stdout.decode().strip()}")


if __name__ == "__main__":
    main()
