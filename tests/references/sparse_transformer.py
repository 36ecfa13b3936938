"""openai/sparse_attention: its masks, block layouts and dense attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.references.case import Adapter, Case
from zoo.layers import AttentionArgs, Mask
from zoo.techniques.sparse.layers import SparseAttention, sparse_attention
from zoo.techniques.sparse.patterns import Sparsity, everything, fixed, local, strided


def sparsity_of(mode: str, context: int | None) -> Sparsity:
    """The reference's attn_mode, all of them causal."""
    if mode == "all":
        return everything(causal=True)
    assert context is not None
    return {"local": local, "strided": strided}[mode](context, causal=True)


def mask_of(sparsity: Sparsity, length: int) -> Tensor:
    """(query, key) bool."""
    place = torch.arange(length)
    return sparsity.pattern.rule(place[:, None], place[None, :]).expand(length, length)


def rows_of(mask: Tensor) -> list[str]:
    return ["".join("1" if seen else "0" for seen in row) for row in mask.tolist()]


def blocks_of(mask: Tensor, block: int) -> Tensor:
    """Which blocks hold a pair that may be seen."""
    count = mask.shape[0] // block
    return mask.reshape(count, block, count, block).any(3).any(1)


def blocksparse(item: dict[str, Any]) -> dict[str, Any]:
    """The block layout and the element mask of each head; "strided" over the transposed sequence,
    where it is block lower-triangular.
    """
    length, block, mode, context = item["n_ctx"], item["blocksize"], item["attn_mode"], item["local_attn_ctx"]
    layouts, masks = [], []
    for head in range(item["n_heads"]):
        if mode == "fixed":
            summary = item["vertsize"] * block
            mask = mask_of(fixed(context, summary, group=head % item["num_verts"], causal=True), length)
        else:
            mask = mask_of(sparsity_of(mode, context), length)
        layout = blocks_of(mask, block)
        if mode == "strided":
            order = (
                torch.arange(length).reshape(-1, context).T.flatten()
            )  # index b · (n / l) + a holds position a · l + b
            mask = mask[order][:, order]
            layout = blocks_of(mask, block)
        if (
            mode == "local"
        ):  # the layout keeps the block that only a longer window would reach; the element mask trims it
            place = torch.arange(length // block)
            layout = (place[None] <= place[:, None]) & (place[None] + context // block >= place[:, None])
        layouts.append(rows_of(layout))
        masks.append(rows_of(mask))
    return {"layout_per_head": layouts, "mask_per_head": masks}


def masks(case: Case) -> dict[str, Any]:
    given = case.given
    return {
        "dense": [
            rows_of(mask_of(sparsity_of(item["attn_mode"], item["local_attn_ctx"]), item["n"]))
            for item in given["dense"]
        ],
        "blocksparse": [blocksparse(item) for item in given["blocksparse"]],
    }


def attention(case: Case) -> dict[str, Tensor]:
    """Each mode through the block-wise path, held against the dense one on the way."""
    heads, inputs = case.config["heads"], case.inputs
    q, k, v = (inputs[name].unflatten(2, (heads, -1)).transpose(1, 2) for name in ("q", "k", "v"))
    outputs = {}
    for mode, context in case.config["modes"]:
        sparsity = sparsity_of(mode, context)
        out = sparse_attention(q, k, v, sparsity)
        again = SparseAttention(sparsity)(q, k, v, AttentionArgs(Mask()))
        assert torch.equal(out, again)
        outputs[f"out.{mode}"] = out.transpose(1, 2).flatten(2)
    return outputs


ADAPTERS: dict[str, Adapter] = {"attention.attention_impl": attention, "masks": masks, "attention.get_attn_mask": masks}
