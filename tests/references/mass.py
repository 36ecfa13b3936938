"""MASS (microsoft/MASS): a step of unsupervised pre-training, the model for summaries, and three
ways to mask a span. Choices are random in the reference, so frequencies over many draws are
compared.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from tests.references import text_models
from tests.references.case import Adapter, Case, Output, Skipped
from zoo.data.span_masking import NoisedInterval, block_places, fate, segment_places
from zoo.tasks.losses import token_cross_entropy

DRAWS = 6000
WHY = f"a frequency over {DRAWS} draws"
SINGLE = Skipped("single random draws, whose relations tests/data/test_span_masking.py asks")


def step(case: Case) -> dict[str, Any]:
    """A step of pre-training: the whole sentence's span behind masks, written at its places."""
    inputs = case.inputs
    model = text_models.load(case, "conditional-generation", "mass-original")
    source, target = inputs["x1"].T, inputs["x2"].T
    read = text_models.real_of_lengths(inputs["len1"], source.shape[1])
    written = text_models.real_of_lengths(inputs["len2"], target.shape[1])
    chosen = inputs["pred_mask"]
    labels = torch.full_like(chosen, -100, dtype=torch.long)
    labels[chosen] = inputs["y"]
    given = {"decoder_position_ids": inputs["positions"].T} if "positions" in inputs else {}
    if "langs1" in inputs:
        given |= {"language_ids": inputs["langs1"].T, "decoder_language_ids": inputs["langs2"].T}
    with torch.no_grad():
        result = model(source, read, decoder_input_ids=target, decoder_attention_mask=written, labels=labels.T, **given)
    return {
        "enc": text_models.at_real(result.encoded.encoder.last_hidden_state, read),
        "dec": Output(result.encoded.last_hidden_state.transpose(0, 1), where=written.T),
        "scores": result.prediction_logits.transpose(0, 1)[chosen],
        "loss": result.loss,
    }


def summarization(case: Case) -> dict[str, Any]:
    """Pre-training with the words' own places, and the same inputs at the first places."""
    inputs, pad = case.inputs, case.config["special"]["[PAD]"]
    fused = any("in_proj" in name for name in case.weights)
    model = text_models.load(case, "conditional-generation", "fairseq-mass-fused" if fused else "fairseq-mass")
    source, previous = inputs["src_tokens"], inputs["prev_output_tokens"]
    read, written = source != pad, previous != pad
    labels = inputs["target"].masked_fill(inputs["target"] == pad, -100)
    given = {"decoder_input_ids": previous, "decoder_attention_mask": written, "output_hidden_states": True}
    places = (inputs["positions"] - pad - 1).clamp(min=0)
    with torch.no_grad():
        result = model(source, read, **given, decoder_position_ids=places, labels=labels)
        tuned = model(source, read, **given)
    loss = token_cross_entropy(result.logits, labels) * (labels != -100).sum()
    decoded = result.encoded
    return {
        "encoder_out": Output(decoded.encoder.last_hidden_state.transpose(0, 1), where=read.T),
        "decoder_features": text_models.at_real(decoded.last_hidden_state, written),
        **{
            f"decoder_inner_states.{depth}": Output(x.transpose(0, 1), where=written.T)
            for depth, x in enumerate(decoded.hidden_states)
        },
        "logits": text_models.at_real(result.logits, written),
        "logits_default_positions": text_models.at_real(tuned.logits, written),
        "nll_sum": loss,
    }


def restricted_mask(case: Case) -> dict[str, Any]:
    """One span, or several of a limited length, in a column of words."""
    items = []
    for number, item in enumerate(case.info["items"]):
        given, rng = item["input"], random.Random(number)
        texts = [list(column) for column in zip(*given["x"], strict=True)]
        length, longest = len(texts[0]), max(1, given["span_len"])
        shares = tuple(given["word_mask_keep_rand"])
        drawn = [segment_places(length, given["word_mass"], rng, longest) for _ in range(DRAWS)]
        first = torch.bincount(torch.tensor([places[0] for places in drawn]), minlength=length)
        fates = _fates(texts[0], drawn, given["mask_index"], given["n_words"], shares, rng)
        items.append(
            {
                "position_masked_frequency": _frequency(drawn, length),
                "first_masked_position_frequency": Output(first / DRAWS, tolerance=0.03, reason=WHY),
                "sentences": Skipped("a number of the reference's experiment"),
                "frac_mask_symbol": fates[0],
                "frac_unchanged": fates[1],
                "examples": SINGLE,
            }
        )
    return {"items": items}


def summarization_mask(case: Case) -> dict[str, Any]:
    """A span in each block of a text."""
    items = []
    for number, item in enumerate(case.info["items"]):
        given, rng = item["input"], random.Random(number)
        tokens = given["tokens"]
        drawn = [block_places(len(tokens), given["mask_prob"], rng, given["block_size"]) for _ in range(DRAWS)]
        shares = tuple(given["pred_probs"])
        fates = _fates(tokens, drawn, given["mask_index"], given["vocab"], shares, rng, given["nspecial"])
        items.append(
            {
                "position_frequency": _frequency(drawn, len(tokens)),
                "n_masked": sorted({len(places) for places in drawn}),
                "frac_mask": fates[0],
                "frac_unchanged": fates[1],
                "draws": Skipped("a number of the reference's experiment"),
                "examples": SINGLE,
            }
        )
    return {"items": items}


def supervised_mask(case: Case) -> dict[str, Any]:
    """The span of supervised MASS: its places, its noise on both sides, and the unmasked text."""
    items = []
    for number, item in enumerate(case.info["items"]):
        given, rng = item["input"], random.Random(number)
        text = [given["eos"], *given["tokens"]]
        mask, rand, keep = given["pred_probs_decoder"]
        noise = NoisedInterval(
            mask_id=given["mask"],
            vocab_size=given["vocab"],
            first_word=given["nspecial"],
            share=given["ratio"],
            decoder_shares=(mask, keep, rand),
        )
        made = [noise(text, rng) for _ in range(DRAWS)]
        starts = Counter(each.places[0] + 1 for each in made)
        masks = sum(each.source.count(given["mask"]) for each in made) / DRAWS
        reads = [token for each in made for token in each.reads]
        items.append(
            {
                "start_frequency": {
                    str(start): Output(torch.tensor(starts[start] / DRAWS), tolerance=0.03, reason=WHY)
                    for start in sorted(starts)
                },
                "mean_masks_in_source": Output(torch.tensor(masks), tolerance=0.1, reason=WHY),
                "fraction_masked_in_decoder_input": Output(
                    torch.tensor(reads.count(given["mask"]) / len(reads)), tolerance=0.02, reason=WHY
                ),
                "evaluation_mode": {"source": text, "prev_output_tokens": text[:-1], "target": text[1:]},
                "examples": SINGLE,
            }
        )
    return {"items": items}


def unsupervised(case: Case) -> dict[str, Any]:
    """Of one trainer: a step, or its masking alone."""
    return step(case) if case.info["kind"] == "model" else restricted_mask(case)


def _frequency(drawn: Sequence[Sequence[int]], length: int) -> Output:
    """How often each place was drawn."""
    counts = torch.bincount(torch.tensor([place for places in drawn for place in places]), minlength=length)
    return Output(counts / len(drawn), tolerance=0.03, reason=WHY)


def _fates(
    tokens: Sequence[int],
    drawn: Sequence[Sequence[int]],
    mask: int,
    vocab_size: int,
    shares: Sequence[float],
    rng: random.Random,
    first_word: int = 0,
) -> tuple[Output, Output]:
    """Shares of the chosen tokens that became masks, and that are what they were."""
    pairs = [
        (tokens[p], fate(tokens[p], mask, vocab_size, rng, shares, first_word)) for places in drawn for p in places
    ]
    masked = sum(new == mask for _, new in pairs) / len(pairs)
    same = sum(new == old for old, new in pairs) / len(pairs)
    return tuple(Output(torch.tensor(each), tolerance=0.02, reason=WHY) for each in (masked, same))  # type: ignore[return-value]


ADAPTERS: dict[str, Adapter] = {
    "MASS-unsupNMT": unsupervised,
    "TransformerMASSModel": summarization,
    "MASS-summarization mass.masked_dataset": summarization_mask,
    "MASS-supNMT mass.masked_language_pair_dataset": supervised_mask,
}
