"""A cache changes speed, not results: states that are made piece by piece are those of one pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import zoo
from tests.strategies import build, relative, small_config
from zoo.errors import InputError
from zoo.layers.cache import KeyValueCache

SOURCE = torch.tensor([[5, 6, 7, 8, 9, 2], [4, 3, 2, 1, 1, 1], [9, 8, 7, 2, 1, 1]])
SIDES = {"right": SOURCE != 1, "left": (SOURCE != 1).flip(1), "holes": SOURCE % 3 != 1}
LANGUAGES = {"xlm-translation": {"language_ids": 1, "decoder_language_ids": 0}}


def written(rows: int = 3, length: int = 5) -> Tensor:
    return torch.randint(2, 19, (rows, length), generator=torch.Generator().manual_seed(3))


def apart(family: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a family's encoder and its decoder read besides."""
    own = LANGUAGES.get(family, {})
    return (
        {name: x for name, x in own.items() if not name.startswith("decoder")},
        {name: x for name, x in own.items() if name.startswith("decoder")},
    )


@torch.no_grad()
def both(model: Any, family: str, source_mask: Tensor | None, target_mask: Tensor | None, pieces: list[int]) -> None:
    encoder, decoder = apart(family)
    memory = model.encode(SOURCE, source_mask, **encoder).last_hidden_state
    ids = written(length=sum(pieces))
    whole = model.decode(ids, memory, source_mask, target_mask, **decoder).last_hidden_state
    cache, start = KeyValueCache(), 0
    for new in pieces:
        some = slice(start, start + new)
        mask = None if target_mask is None else target_mask[:, some]
        part = model.decode(
            ids[:, some], memory if start == 0 else None, source_mask, mask, cache=cache, **decoder
        ).last_hidden_state
        assert relative(part, whole[:, some]) <= 1e-12
        start += new


@pytest.mark.parametrize("family", ["mbart", "xlm-translation"])
@pytest.mark.parametrize("side", [None, *SIDES])
@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1], [3, 2], [2, 1, 2]])
def test_states_made_piece_by_piece_are_those_of_one_pass(family, side, pieces):
    model = build(family, small_config(family))
    mask = None if side is None else SIDES[side]
    both(model, family, mask, None, pieces)
    left = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    both(model, family, mask, left, pieces)
    with zoo.packing(False):
        both(model, family, mask, left, pieces)


@torch.no_grad()
def test_rows_follow_others_and_leave():
    model = build("mbart", small_config("mbart"))
    mask = SIDES["right"]
    memory = model.encode(SOURCE, mask).last_hidden_state
    cache, ids = KeyValueCache(), written(6, 4)
    ids[:, 0] = 2  # the rows of one source begin alike
    model.decode(ids[::2, :1], memory, mask, cache=cache)
    cache.repeat(2)
    model.decode(ids[:, 1:3], cache=cache)
    parents = torch.tensor([1, 1, 2, 2, 5, 4])
    ids = torch.cat([ids[parents, :3], ids[:, 3:]], 1)
    cache.follow(parents, since=1)
    part = model.decode(ids[:, 3:], cache=cache).last_hidden_state
    whole = model.decode(ids, memory.repeat_interleave(2, 0), mask.repeat_interleave(2, 0)).last_hidden_state
    assert relative(part, whole[:, 3:]) <= 1e-12
    cache.cut(3)
    kept = torch.tensor([2, 0])
    cache.keep(kept, each=2)
    rows = torch.tensor([4, 5, 0, 1])
    part = model.decode(ids[rows, 3:], cache=cache).last_hidden_state
    assert relative(part, whole[rows, 3:]) <= 1e-12


def test_a_cache_without_a_source_is_refused():
    model = build("mbart", small_config("mbart"))
    with pytest.raises(InputError, match="knows no source"):
        model.decode(written(), cache=KeyValueCache())
    with pytest.raises(InputError, match="memory is missing"):
        model.decode(written())
