"""Attention against an oracle of loops, on every path: fused, explicit, packed, padded, through
patterns and across streams.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.errors import InputError
from zoo.layers import Attention, Mask, Padding, Run, Trace, causal, cross_mask, packing, prefix, window
from zoo.layers.padding import together

PATTERNS = {"none": None, "causal": causal(), "window": window(1), "prefix": prefix(2), "both": causal() & window(2)}


def oracle(attention: Attention, query: Tensor, memory: Tensor, allowed: Tensor, bias: Tensor | None = None) -> Tensor:
    """Loops over rows, heads and queries; ``allowed`` (batch, query, key) bool. A query that sees
    nothing gives W_o 0 + b.
    """
    heads, size = attention.num_heads, attention.head_size
    out = torch.zeros(query.shape[0], query.shape[1], heads * size, dtype=query.dtype)
    for b in range(query.shape[0]):
        q, k, v = attention.query(query[b]), attention.key(memory[b]), attention.value(memory[b])
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(query.shape[1]):
                seen = [j for j in range(memory.shape[1]) if allowed[b, i, j]]
                if not seen:
                    continue
                scores = [math.fsum((q[i, part] * k[j, part]).tolist()) / math.sqrt(size) for j in seen]
                if bias is not None:
                    scores = [s + float(bias[0, h, i, j]) for s, j in zip(scores, seen, strict=True)]
                top = max(scores)
                weights = [math.exp(s - top) for s in scores]
                out[b, i, part] = sum(w / sum(weights) * v[j, part] for w, j in zip(weights, seen, strict=True))
    return attention.output(out)


def attention(hidden: int = 8, heads: int = 2, seed: int = 0, **sizes: int) -> Attention:
    torch.manual_seed(seed)
    made = Attention(hidden, heads, **sizes).double().eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, 0.7)
    return made


def rule_on(pattern_name: str, rows: int, columns: int) -> Tensor:
    """What each pattern means, in plain words, written apart from the library's rules."""
    table = torch.zeros(rows, columns, dtype=torch.bool)
    for i in range(rows):
        for j in range(columns):
            table[i, j] = {
                "none": True,
                "causal": j <= i,
                "window": abs(i - j) <= 1,
                "prefix": j < 2 or (i >= 2 and j <= i),
                "both": i - 2 <= j <= i,
            }[pattern_name]
    return table


@st.composite
def reals(draw: st.DrawFn, batch: int, length: int) -> Tensor:
    """Masks of any kind: right padding, left padding, holes, empty rows."""
    return torch.tensor([[draw(st.booleans()) for _ in range(length)] for _ in range(batch)])


@given(
    data=st.data(),
    pattern=st.sampled_from(sorted(PATTERNS)),
    biased=st.booleans(),
    batch=st.integers(1, 4),
    length=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_every_path_equals_the_loops(data, pattern, biased, batch, length):
    op, real = attention(), data.draw(reals(batch, length))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    x = torch.randn(batch, length, 8, dtype=torch.float64, generator=generator)
    bias = torch.randn(1, 2, length, length, dtype=torch.float64, generator=generator) if biased else None
    wanted = oracle(op, x, x, real[:, None, :] & rule_on(pattern, length, length), bias)

    def run(pack: bool, trace: Trace | None = None) -> Tensor:
        padding = Padding.of(real, (batch, length), pack=pack)
        mask = (
            cross_mask(padding, padding)
            if PATTERNS[pattern] is None
            else cross_mask(padding, padding) & PATTERNS[pattern]
        )
        rows = padding.pack(x)
        return padding.unpack(op(rows, rows, rows, mask, bias, trace))

    for got in (run(True), run(False), run(False, Trace(attentions=True))):
        torch.testing.assert_close(got[real], wanted[real], rtol=1e-10, atol=1e-10)
        assert not got[~real].any()


@given(data=st.data(), batch=st.integers(1, 4), queries=st.integers(1, 4), keys=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_cross_attention_between_two_packed_streams_equals_the_loops(data, batch, queries, keys):
    op = attention(key_size=6)
    real_q, real_k = data.draw(reals(batch, queries)), data.draw(reals(batch, keys))
    text, image = together(Padding.of(real_q, (batch, queries)), Padding.of(real_k, (batch, keys)))
    x = torch.randn(batch, queries, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = torch.randn(batch, keys, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    wanted = oracle(op, x, y, real_k[:, None, :].expand(batch, queries, keys))
    packed_y = image.pack(y)
    got = text.unpack(op(text.pack(x), packed_y, packed_y, cross_mask(text, image)))
    torch.testing.assert_close(got[real_q], wanted[real_q], rtol=1e-10, atol=1e-10)
    unpacked = op(x, y, y, Mask(keys=real_k))
    torch.testing.assert_close(unpacked[real_q], wanted[real_q], rtol=1e-10, atol=1e-10)


def test_a_visible_matrix_decides_row_by_row_and_an_empty_row_gives_zeros():
    op = attention()
    visible = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    visible[0, 3] = False
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    padding = Padding.of(visible, (2, 5))
    wanted = oracle(op, x, x, visible)
    for trace in (None, Trace(attentions=True)):
        torch.testing.assert_close(
            op(x, x, x, cross_mask(padding, padding), None, trace), wanted, rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("written_out", [True, False])
@pytest.mark.parametrize("low", [False, True])
def test_a_mask_hides_a_key_however_the_scores_lie(pack, written_out, low):
    """Padding whose score is huge, or real keys whose scores lie far below -10,000: a mask of that
    size would let padding through.
    """
    op, real = attention(), torch.tensor([[True, True, True, False], [True, True, False, True]])
    x = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    x[~real] *= 1e8
    if low:
        op.query.bias.data.fill_(300)
        op.key.bias.data.fill_(-300)
    wanted = oracle(op, x, x, real[:, None, :].expand(2, 4, 4))
    padding = Padding.of(real, (2, 4), pack=pack)
    rows = padding.pack(x)
    got = padding.unpack(op(rows, rows, rows, cross_mask(padding, padding), None, Trace(attentions=written_out)))
    torch.testing.assert_close(got[real], wanted[real], rtol=1e-9, atol=1e-9)


def test_gradients_stay_finite_where_a_query_sees_nothing():
    op, real = attention(), torch.tensor([[True, True, False], [False, False, False]])
    for trace in (None, Trace(attentions=True)):
        x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
        padding = Padding.of(real, (2, 3), pack=False)
        op(x, x, x, cross_mask(padding, padding), None, trace).sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()


def test_packed_attention_computes_no_score_for_padding(monkeypatch):
    seen = []
    op = attention()
    original = op.core.forward

    def spy(q, k, v, args):
        seen.append((q.shape[0], q.shape[2], k.shape[2], args.mask.keys))
        return original(q, k, v, args)

    monkeypatch.setattr(op.core, "forward", spy)
    lengths = [3, 1, 3, 5]
    real = torch.arange(5)[None] < torch.tensor(lengths)[:, None]
    padding = Padding.of(real, (4, 5))
    x = padding.pack(torch.randn(4, 5, 8, dtype=torch.float64))
    assert x.shape == (12, 8)
    op(x, x, x, cross_mask(padding, padding))
    assert seen == [(1, 1, 1, None), (2, 3, 3, None), (1, 5, 5, None)]


def test_the_switch_turns_packing_off_for_a_block_or_from_here_on():
    real = torch.tensor([[True, False], [True, True]])
    assert Padding.of(real, (2, 2)).packed is not None
    with packing(False):
        assert Padding.of(real, (2, 2)).packed is None
        with packing(True):
            assert Padding.of(real, (2, 2)).packed is not None
    assert Padding.of(real, (2, 2)).packed is not None
    packing(False)
    try:
        assert Padding.of(real, (2, 2)).packed is None
    finally:
        packing(True)


def test_lengths_stand_in_for_a_mask():
    x = torch.randn(3, 4, 2)
    by_lengths = Padding.of(None, (3, 4), lengths=[2, 4, 0])
    by_mask = Padding.of(torch.arange(4)[None] < torch.tensor([[2], [4], [0]]), (3, 4))
    torch.testing.assert_close(by_lengths.unpack(by_lengths.pack(x)), by_mask.unpack(by_mask.pack(x)), rtol=0, atol=0)
    assert Padding.of(None, (3, 4), lengths=[4, 4, 4]).packed is None
    with pytest.raises(InputError, match="lengths must be 3 numbers from 0 to 4"):
        Padding.of(None, (3, 4), lengths=[5, 1, 1])


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (torch.zeros(2, 3), "looks additive"),
        (torch.ones(2, 4, dtype=torch.int64), "must be \\(batch, length\\) = \\(2, 3\\)"),
        (torch.ones(2, 3, 4, dtype=torch.int64), "must be \\(batch, query, key\\) = \\(2, 3, 3\\)"),
        (torch.ones(3, dtype=torch.int64), "must be \\(batch, length\\)"),
        ([[1, 1, 0]], "must be a tensor, got list"),
    ],
)
def test_masks_of_another_kind_are_refused_saying_why(mask, says):
    with pytest.raises(InputError, match=says):
        Padding.of(mask, (2, 3))


def test_streams_packed_in_different_orders_are_refused():
    text = Padding.of(torch.tensor([[1, 1], [1, 0]]), (2, 2))
    image = Padding.of(torch.tensor([[1, 0], [1, 1]]), (2, 2))
    with pytest.raises(InputError, match="together"):
        cross_mask(text, image)


def test_no_module_of_the_layers_hides_a_function_of_that_name():
    import zoo.layers

    modules = {path.stem for path in Path(zoo.layers.__file__).parent.glob("*.py")}
    assert not modules & set(zoo.layers.__all__)


@given(data=st.data(), batch=st.integers(1, 4), context=st.integers(1, 4), words=st.integers(1, 4))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_ranks_let_one_stream_write_and_packed_equals_the_dense_matrix(data, batch, context, words):
    """Sequence-to-sequence in one stream: the context (rank 0) is seen by all and sees only itself, written words see
    the context and the words before them (UniLM, VLP).
    """
    op, length = attention(), context + words
    real = data.draw(reals(batch, length))
    x = torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ranks = torch.cat([torch.zeros(context, dtype=torch.int64), torch.arange(1, words + 1)]).expand(batch, -1)
    allowed = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            allowed[query, key] = key < context or context <= key <= query
    wanted = oracle(op, x, x, real[:, None, :] & allowed)
    for on in (True, False):
        with packing(on):
            run = Run(x, real, ranks=ranks)
            got = run.through(lambda rows, mask, bias, trace: op(rows, rows, rows, mask, bias, trace), causal())
        torch.testing.assert_close(got[real], wanted[real], rtol=1e-10, atol=1e-10)
        assert not got[~real].any()
