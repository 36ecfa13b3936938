"""Settings of a search, drawn, and what transformers writes with them.

    python -m tests.inference.search_oracle 200

A hypothesis that differs must score like theirs to within float rounding: a near-tie. Settings that leave
no token to write are refused here, where transformers writes a forbidden one: 1 of the first 200.
"""

from __future__ import annotations

import copy
import random
import sys
from typing import Any

import torch
from torch import Tensor

from tests import oracle
from tests.strategies import build, small_config
from zoo.errors import InputError
from zoo.inference.generate import Generated, generate

WRITERS = {"mbart": ("hf-mbart", "MBartForConditionalGeneration"), "bart": ("hf-bart", "BartForConditionalGeneration")}
SOURCES, LONGEST, VOCABULARY = 4, 24, 19


def settings(seed: int) -> dict[str, Any]:
    """Deterministic settings that any search can take: beams, penalties, bans and lengths."""
    draw = random.Random(seed)
    found: dict[str, Any] = {"max_length": draw.randint(4, LONGEST), "num_beams": draw.choice([1, 1, 2, 3, 4, 5])}
    if found["num_beams"] > 1:
        found["num_return_sequences"] = draw.randint(1, found["num_beams"])
        found["length_penalty"] = draw.choice([-1.0, 0.0, 0.6, 1.0, 2.0])
        found["early_stopping"] = draw.choice([True, False, "never"])
    for name, values in {
        "min_length": [3, 6],
        "min_new_tokens": [2, 4],
        "no_repeat_ngram_size": [1, 2, 3],
        "encoder_no_repeat_ngram_size": [2, 3],
        "repetition_penalty": [0.8, 1.3, 2.0],
        "forced_bos_token_id": [5],
        "forced_eos_token_id": [2],
        "suppress_tokens": [[3, 8], [4]],
        "begin_suppress_tokens": [[2], [6, 7]],
        "bad_words_ids": [[[9]], [[9, 10], [11]], [[4, 4], [12, 13, 14]]],
    }.items():
        if draw.random() < 0.3:
            found[name] = draw.choice(values)
    if found.get("min_length", 0) > found["max_length"]:
        del found["min_length"]
    if "no_repeat_ngram_size" in found and found["no_repeat_ngram_size"] == 1:
        found["max_length"] = min(found["max_length"], 10)  # the vocabulary would run out of tokens
        found.pop("min_length", None)
    if draw.random() < 0.2:
        found["end_token_id"] = [2, draw.randint(12, 15)]
    if draw.random() < 0.15:
        kept = sorted({2, *draw.sample(range(3, VOCABULARY), 9)})
        found["prefix_allowed_tokens"] = lambda source, ids: kept[: len(kept) - source]
    return found


def sources(seed: int) -> dict[str, Tensor]:
    """A ragged batch, its padding on the right or, every third time, on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (SOURCES, 7), generator=generator)
    lengths = torch.randint(1, 8, (SOURCES, 1), generator=generator)
    real = torch.arange(7) < lengths
    real = real.flip(1) if seed % 3 == 0 else real
    return {"input_ids": ids.masked_fill(~real, 1), "attention_mask": real.long()}


def pair(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A small model of ours in float64 and transformers' with its weights."""
    layout, name = WRITERS[family]
    config = small_config(family, start_token_id=2, vocab_size=VOCABULARY, max_positions=LONGEST)
    ours = build(family, config, "conditional-generation", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in ours.parameters():  # so that neither every word nor the end is sure
        parameter.data.add_(0.25 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return ours, oracle.taught(layout, oracle.hugging_face(layout, name, ours.config, {}), ours)


def theirs(model: Any, given: dict[str, Tensor], drawn: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
    """What transformers writes, and with beams the scores."""
    named = {**drawn}
    if "end_token_id" in named:
        named["eos_token_id"] = named.pop("end_token_id")
    if "prefix_allowed_tokens" in named:
        named["prefix_allowed_tokens_fn"] = named.pop("prefix_allowed_tokens")
    named.setdefault("forced_bos_token_id", None)
    named.setdefault("forced_eos_token_id", None)
    model = copy.copy(model)
    model.generation_config.forced_eos_token_id = model.generation_config.forced_bos_token_id = None
    found = model.generate(
        **given,
        **named,
        do_sample=False,
        decoder_start_token_id=2,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return found.sequences, getattr(found, "sequences_scores", None)


def compared(mine: Generated, sequences: Tensor, scores: Tensor | None) -> str:
    """ "equal", "tie" where all that differs scores alike, or what is wrong."""
    ids = mine.sequences
    width = max(ids.shape[1], sequences.shape[1])
    padded = [torch.nn.functional.pad(x, (0, width - x.shape[1]), value=1) for x in (ids, sequences)]
    different = (padded[0] != padded[1]).any(1)
    if scores is not None and not torch.allclose(mine.scores.double(), scores.double(), rtol=1e-4, atol=1e-4):
        return f"scores {mine.scores.tolist()} instead of {scores.tolist()}"
    if not bool(different.any()):
        return "equal"
    if scores is not None:
        return "tie"
    row = int(different.int().argmax())
    return f"row {row}: {ids[row].tolist()} instead of {sequences[row].tolist()}"


def repeats(sequences: Tensor, size: int) -> bool:
    """Whether a text holds an n-gram of this size twice, which the rules forbid."""
    for ids in sequences.tolist():
        text = ids[: max(i for i, token in enumerate(ids) if token != 1) + 1]
        grams = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
        if size and len(set(grams)) < len(grams):
            return True
    return False


def run(count: int, families: tuple[str, ...] = ("mbart", "bart"), first: int = 0) -> dict[str, int]:
    """How many drawn settings agree; prints those that don't."""
    found: dict[str, int] = {}
    for family in families:
        models = [pair(family, seed) for seed in range(min(4, 1 + count // 20))]
        for seed in range(first, first + count):
            drawn, given = settings(seed), sources(seed)
            ours, reference = models[seed % len(models)]
            sequences, scores = theirs(reference, given, drawn)
            try:
                verdict = compared(generate(ours, **given, **drawn), sequences, scores)
            except InputError as error:  # the rules leave no token, and transformers writes a forbidden one
                verdict = "refused" if repeats(sequences, drawn.get("no_repeat_ngram_size", 0)) else f"{error}"
            kind = verdict if verdict in ("equal", "tie", "refused") else "different"
            found[kind] = found.get(kind, 0) + 1
            if verdict != "equal":
                print(family, seed, drawn, verdict)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(run(int(sys.argv[1]) if len(sys.argv) > 1 else 200))
