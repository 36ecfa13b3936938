"""Forward passes against `transformers` with scaled_dot_product_attention: the same weights, equal outputs first, full and ragged batches.

    python -m benchmarks.forward [--rounds 7]

Ragged batches take the lengths of real sentences (the demo's, repeated); "third" scales them to one third real tokens.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
import transformers

import zoo
from benchmarks.timing import interleaved, machine, table
from examples.demo import SENTENCES

CASES = [("minilm-l6-h384", 16, 128), ("bert-base", 8, 128)]


def lengths_of(kind: str, rows: int, width: int) -> list[int]:
    """Real tokens per row."""
    if kind == "full":
        return [width] * rows
    words = [len(sentence.split()) + 2 for sentence in SENTENCES]
    chosen = [words[(5 * i) % len(words)] for i in range(rows)]
    scaled = [max(3, min(width, round(n * width / max(chosen)))) for n in chosen]
    if kind == "third":
        factor = rows * width / 3 / sum(scaled)
        scaled = [max(3, min(width, round(n * factor))) for n in scaled]
    scaled[0] = width
    return scaled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(machine(), "transformers", transformers.__version__)
    rows = []
    for name, batch, width in CASES:
        ours = zoo.create(name, generator=torch.Generator().manual_seed(0)).eval()
        with tempfile.TemporaryDirectory() as folder:
            zoo.save(ours, f"{folder}/ours")
            zoo.convert(f"{folder}/ours", f"{folder}/theirs", to="hf-bert")
            config = transformers.BertConfig(**json.loads((Path(folder) / "theirs" / "config.json").read_text()))
            theirs = transformers.BertModel.from_pretrained(f"{folder}/theirs", config=config, attn_implementation="sdpa").eval()
        for kind in ("full", "ragged", "third"):
            lengths = lengths_of(kind, batch, width)
            mask = (torch.arange(width)[None] < torch.tensor(lengths)[:, None]).long()
            ids = torch.randint(1000, 20000, (batch, width), generator=torch.Generator().manual_seed(1)) * mask
            given = {"input_ids": ids, "attention_mask": mask}
            with torch.inference_mode():
                a, b = ours(**given).last_hidden_state, theirs(**given).last_hidden_state
                torch.testing.assert_close(a[mask.bool()], b[mask.bool()], rtol=1e-4, atol=1e-4)
                times = interleaved({"zoo": lambda m=ours, g=given: m(**g), "transformers": lambda m=theirs, g=given: m(**g)}, rounds)
            share = sum(lengths) / (batch * width)
            ratio = times["transformers"] / times["zoo"]
            rows.append(
                [f"{name} {batch} x {width} {kind}", f"{share:.0%}", f"{times['zoo']:.0f}", f"{times['transformers']:.0f}", f"{ratio:.2f}"]
            )
    table("forward, ms, float32, eval", ["case", "real tokens", "zoo", "transformers", "times faster"], rows)


if __name__ == "__main__":
    main()
