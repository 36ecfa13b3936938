"""How to run attention on the real tokens of a ragged batch: four ways, attention alone, in
milliseconds.

    python -m benchmarks.packing

- by length: one call for each run of sequences of equal length (what `Mask.attend` does; the rows are sorted by length)
- by sequence: one call for each sequence
- block mask: all tokens in one row, a dense mask that keeps sequences apart
- padded: the packed rows are padded for attention only, with a key mask
- nested: torch's jagged nested tensors
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.timing import machine, table
from zoo.inference.timing import interleaved

CASES = [
    ("8 of 12-128, hidden 768", [12, 24, 33, 47, 61, 80, 101, 128], 12, 64),
    ("8 of 48-512, hidden 768", [48, 96, 130, 190, 256, 320, 410, 512], 12, 64),
    ("64 of 30, hidden 384", [30] * 64, 12, 32),
    ("256 of 8, hidden 384", [8] * 256, 12, 32),
    ("32 of 5-40 (sentences), hidden 384", [5 + (7 * i) % 36 for i in range(32)], 12, 32),
]


def measure(name: str, lengths: list[int], heads: int, size: int) -> list[str]:
    lengths = sorted(lengths)
    total = sum(lengths)
    q, k, v = (torch.randn(total, heads, size) for _ in range(3))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    runs = [(length, lengths.index(length), lengths.count(length)) for length in sorted(set(lengths))]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    apart = owner[:, None] == owner[None, :]
    grid = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    where = grid.flatten().nonzero().flatten()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2)

    def by_length() -> torch.Tensor:
        parts = []
        for length, first, count in runs:
            cut = slice(starts[first], starts[first] + count * length)
            parts.append(attend(*(x[cut].unflatten(0, (count, length)) for x in (q, k, v))).flatten(0, 1))
        return torch.cat(parts)

    def by_sequence() -> torch.Tensor:
        return torch.cat(
            [attend(*(x[s : s + n][None] for x in (q, k, v)))[0] for s, n in zip(starts, lengths, strict=True)]
        )

    def block_mask() -> torch.Tensor:
        return attend(q[None], k[None], v[None], apart[None, None])[0]

    def padded() -> torch.Tensor:
        full = [
            x.new_zeros(grid.numel(), heads, size).index_copy(0, where, x).unflatten(0, grid.shape) for x in (q, k, v)
        ]
        return attend(*full, grid[:, None, None, :]).flatten(0, 1)[where]

    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])

    def nested() -> torch.Tensor:
        parts = [torch.nested.nested_tensor_from_jagged(x, offsets) for x in (q, k, v)]
        return attend(*parts).values()

    sides = {
        "by length": by_length,
        "by sequence": by_sequence,
        "block mask": block_mask,
        "padded": padded,
        "nested": nested,
    }
    wanted = by_sequence()
    with torch.no_grad():
        for side in ("by length", "block mask", "padded"):
            torch.testing.assert_close(sides[side](), wanted, rtol=1e-4, atol=1e-4)
        times = interleaved(sides, rounds=9)
    return [name, *(f"{times[side]:.1f}" for side in sides)]


def main() -> None:
    print(machine())
    rows = [measure(*case) for case in CASES]
    table("attention alone, ms, float32", ["batch", "by length", "by sequence", "block mask", "padded", "nested"], rows)


if __name__ == "__main__":
    main()
