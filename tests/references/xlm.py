"""XLM (facebookresearch/XLM and its Hugging Face port). The original is time first,
[length][batch]; ours is batch first.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references import text_models
from tests.references.case import Adapter, Case, Output, Skipped
from zoo.data.instances import join_translations
from zoo.data.masking import blank_words, drop_words, rarity_weights, replace_ids, shuffle_words, xlm_choice
from zoo.inference.generate import generate
from zoo.tokenization import load_tokenizer
from zoo.tokenization.xlm import XlmSteps
from zoo.training.schedules import Schedule, cosine_restarts, inverse_square_root

DRAWS = 6000
STEPS = (0, 1, 10, 100, 499, 500, 501, 1000, 3999, 4000, 10000, 30000, 100000)


def concat_batches(case: Case) -> dict[str, Any]:
    items = []
    for item in case.info["items"]:
        given = item["input"]
        joined = join_translations(
            torch.tensor(given["x1"]).T,
            torch.tensor(given["len1"]),
            given["lang1_id"],
            torch.tensor(given["x2"]).T,
            torch.tensor(given["len2"]),
            given["lang2_id"],
            given["pad_idx"],
            given["reset_positions"],
        )
        items.append(
            {
                "x": joined.input_ids.T,
                "lengths": joined.lengths,
                "positions": joined.position_ids.T,
                "langs": joined.language_ids.T,
            }
        )
    return {"items": items}


def add_noise(case: Case) -> dict[str, Any]:
    """The three kinds of noise in turn, each with its recorded draws; a kind that is switched off
    drew nothing.
    """
    config, call = case.config, case.info["call"]
    items = []
    for item in case.info["items"]:
        columns = torch.tensor(item.get("input", call)["x"] if "x" in item.get("input", call) else call["x"]).T.tolist()
        lengths = item.get("input", call).get("lengths", call["lengths"])
        sentences = [column[:length] for column, length in zip(columns, lengths, strict=True)]
        draws = iter(item["draws_in_order"])
        if config["word_shuffle"]:
            offsets = _columns(next(draws), "uniform")
            sentences = [shuffle_words(s, u) for s, u in zip(sentences, offsets, strict=True)]
        if config["word_dropout"]:
            uniforms = _columns(next(draws), "rand")
            spare = partial(_spare, draws)
            sentences = [
                drop_words(s, u, config["word_dropout"], spare) for s, u in zip(sentences, uniforms, strict=True)
            ]
        if config["word_blank"]:
            uniforms = _columns(next(draws), "rand")
            sentences = [
                blank_words(s, u, config["word_blank"], config["mask_index"])
                for s, u in zip(sentences, uniforms, strict=True)
            ]
        longest = max(map(len, sentences))
        padded = [s + [config["pad_index"]] * (longest - len(s)) for s in sentences]
        items.append({"x": torch.tensor(padded).T, "lengths": torch.tensor([len(s) for s in sentences])})
    return {"items": items}


def _columns(draw: list[Any], kind: str) -> list[list[float]]:
    if draw[0] != kind:
        raise AssertionError(f"the reference drew {draw[0]!r} where we draw {kind!r}")
    return [list(column) for column in zip(*draw[1], strict=True)]


def _spare(draws: Iterator[list[Any]], count: int) -> int:
    """The reference draws from 1 to the number of words; ours counts from 0."""
    value = next(draws)[-1]
    while isinstance(value, list):
        value = value[0]
    return int(value) - 1


def mask_out(case: Case) -> dict[str, Any]:
    """Choice and fate are random in the reference too: what it chose over many draws is held
    against what we choose over as many.
    """
    items = []
    for number, item in enumerate(case.info["items"]):
        given = item["input"]
        input_ids = torch.tensor(given["x"]).T  # (batch, length)
        real = torch.arange(input_ids.shape[1]) < torch.tensor(given["lengths"])[:, None]
        weights = rarity_weights(torch.tensor(given["counts"]), given["sample_alpha"])
        generator = torch.Generator().manual_seed(number)
        chosen = torch.stack(
            [
                xlm_choice(input_ids, real, given["word_pred"], weights if given["sample_alpha"] else None, generator)
                for _ in range(DRAWS)
            ]
        )  # (draws, batch, length)
        shares = tuple(given["word_mask_keep_rand"])
        many = input_ids.expand_as(chosen).flatten(0, 1)
        corrupted, labels = replace_ids(
            many, chosen.flatten(0, 1), given["mask_index"], given["n_words"], generator, shares
        )
        counts = chosen.sum((1, 2)).double()
        predicted = labels != -100
        became_mask = (corrupted == given["mask_index"]) & predicted
        stayed = (corrupted == labels) & predicted
        total = predicted.sum()
        same = bool(given["sample_alpha"])
        why = f"a frequency over {DRAWS} draws"
        items.append(
            {
                "mask_scores": weights,
                "selection_frequency": Output(chosen.double().mean(0).T, tolerance=0.04, reason=why),
                "draws": Skipped("a number of the reference's experiment"),
                "mean_n_pred": counts.mean() if same else Output(counts.mean(), tolerance=0.02, reason=why),
                "min_n_pred": counts.min().long() if same else Skipped("an extreme of random counts"),
                "max_n_pred": counts.max().long() if same else Skipped("an extreme of random counts"),
                "frac_masked": Output(became_mask.sum() / total, tolerance=0.015, reason=why),
                "frac_kept": Output(stayed.sum() / total, tolerance=0.015, reason=why),
                "frac_random": Output((predicted & ~became_mask & ~stayed).sum() / total, tolerance=0.015, reason=why),
                "examples": Skipped("single random draws, which the case does not record"),
            }
        )
    return {"items": items}


def lr_schedule(case: Case) -> dict[str, Any]:
    """The rate at the steps that the case asks for."""
    items = [
        {step: _schedule(item)(int(step)) for step in item.get("lr", map(str, STEPS))} for item in case.info["items"]
    ]
    return {"items": [{"lr": rates} for rates in items]}


def _schedule(item: dict[str, Any]) -> Schedule:
    args = item["args"]
    initial = args.get("warmup_init_lr", 1e-7)
    if item["class"] == "AdamInverseSqrtWithWarmup":
        return inverse_square_root(
            args.get("lr", 1e-3), args.get("warmup_updates", 4000), initial, args.get("exp_factor", 0.5)
        )
    if item["class"] == "AdamCosineWithWarmup":
        return cosine_restarts(
            args.get("lr", 1e-3),
            args.get("warmup_updates", 4000),
            args.get("init_period", 1_000_000),
            args.get("period_mult", 1.0),
            args.get("lr_shrink", 0.75),
            initial,
            args.get("min_lr", 1e-9),
        )
    if item["class"] == "Adam":
        return lambda step: args.get("lr", 1e-3)
    raise LookupError(f"no schedule for {item['class']}")


def hugging_face(case: Case) -> dict[str, Any]:
    """The port calls languages ``langs``."""
    named = {"language_ids" if name == "langs" else name: tensor for name, tensor in case.inputs.items()}
    return dict(text_models.hugging_face(replace(case, inputs=named)))


def original(case: Case) -> dict[str, Any]:
    """The encoder and its prediction layer on (length, batch) tensors: MLM, CLM, TLM."""
    inputs = case.inputs
    model = text_models.load(case, "masked-lm", "xlm-original")
    ids = inputs["x"].T
    real = text_models.real_of_lengths(inputs["lengths"], ids.shape[1])
    given: dict[str, Any] = {"attention_mask": real}
    if "langs" in inputs:
        given["language_ids"] = inputs["langs"].T
    if "positions" in inputs:
        given["position_ids"] = inputs["positions"].T
    chosen = inputs["pred_mask"].T  # in the order of time, then batch, as the reference flattens them
    labels = torch.full_like(ids, -100).T
    labels[inputs["pred_mask"]] = inputs["y"]
    with torch.no_grad():
        result = model(ids, labels=labels.T, **given)
        kept = norms(model.model, ids, **given)
    return {
        "tensor": result.encoded.last_hidden_state.transpose(0, 1),
        "scores": result.prediction_logits.transpose(0, 1)[chosen.T],
        "loss": result.loss,
        **{name: text_models.at_real(value, real) for name, value in kept.items()},
    }


def translation(case: Case, layout: str = "xlm-translation-original") -> dict[str, Any]:
    """A step of supervised translation, and greedy writing, of ``vocab_mask``'s words alone where the
    case has one; the target's words are predicted from those before them.
    """
    inputs = case.inputs
    model = text_models.load(case, "conditional-generation", layout)
    allowed = {"vocabulary": inputs["vocab_mask"].bool()} if "vocab_mask" in inputs else {}
    source, target = inputs["x1"].T, inputs["x2"].T
    read = text_models.real_of_lengths(inputs["len1"], source.shape[1])
    written = text_models.real_of_lengths(inputs["len2"], target.shape[1])
    stated = re.search(r"max_len (\d+)", case.info["notes"])
    labels = torch.full_like(target, -100)
    labels[:, :-1] = torch.where(written[:, 1:], target[:, 1:], -100)
    languages = {"language_ids": inputs["langs1"].T} if "langs1" in inputs else {}
    target_languages = {"decoder_language_ids": inputs["langs2"].T} if "langs2" in inputs else {}
    with torch.no_grad():
        result = model(
            source,
            read,
            decoder_input_ids=target,
            decoder_attention_mask=written,
            labels=labels,
            **languages,
            **target_languages,
        )
        if target_languages:
            target_languages = {"decoder_language_ids": inputs["langs2"][0].tolist()}
        longest = int(stated[1]) if stated else None
        generated = generate(
            model, source, read, max_length=longest, end_at_limit=True, **allowed, **languages, **target_languages
        ).sequences
    predicted = (labels != -100).T
    return {
        "enc": text_models.at_real(result.encoded.encoder.last_hidden_state, read),
        "dec": result.encoded.last_hidden_state.transpose(0, 1),
        "scores": result.prediction_logits.transpose(0, 1)[predicted],
        "loss": result.loss,
        "generated": generated.T,
        "generated_len": ((generated == model.config.end_token_id).cumsum(1) < 2).sum(1)
        + 1,  # the first end is the beginning
    }


def norms(model: Any, *inputs: Tensor, **named: Any) -> dict[str, Tensor]:
    """What leaves each norm, padding included, under the reference's hook names; packing off, so
    that it is (batch, length, hidden).
    """
    places = {"hook.layer_norm_emb": model.embeddings.norm}
    for index, block in enumerate(model.encoder.blocks):
        places |= {
            f"hook.layer_norm1.{index}": block.attention_norm,
            f"hook.layer_norm2.{index}": block.feed_forward_norm,
        }
    kept: dict[str, Tensor] = {}
    handles = [
        place.register_forward_hook(lambda _module, _inputs, output, name=name: kept.update({name: output}))
        for name, place in places.items()
    ]
    with zoo.packing(False):
        model(*inputs, **named)
    for handle in handles:
        handle.remove()
    return kept


def tokenizer(case: Case) -> dict[str, Any]:
    """Moses steps and BPE; the vocabulary's pieces stand for what the reference shows before it
    looks them up.
    """
    config = case.config
    lower = bool(config.get("do_lowercase_and_remove_accent", True))
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = {piece: index for index, piece in enumerate(config["vocab"])}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("".join(f"{a} {b} 1\n" for a, b in config["merges"]), encoding="utf-8")
        ours = load_tokenizer(folder, {"xlm": {"vocab": "vocab.json", "merges": "merges.txt"}, "lower_case": lower})

    assert isinstance(ours.pre_step, XlmSteps)

    def pieces(text: str, language: str | None) -> list[str]:
        return ours.pre_step(text, language).split()

    items: list[dict[str, Any]] = []
    texts = [item["input"] for item in case.info["items"]]
    for given in texts:
        if "pair" in given:
            first, second = texts[0], texts[1]
            both = ours.encode(first["text"], second["text"], language=first["lang"], pair_language=second["lang"])
            items.append({"with_special": both.ids, "token_type_ids": both.type_ids})
            continue
        ids = ours.encode(given["text"], language=given["lang"]).ids
        items.append(
            {
                "moses_input_after_normalisation": ours.pre_step.plain_signs(given["text"]),
                "tokens": pieces(given["text"], given["lang"]),
                "tokens_without_lang": pieces(given["text"], None),
                "ids": ids[1:-1],
                "with_special": ids,
                "decoded": "".join(pieces(given["text"], given["lang"])).replace("</w>", " ").strip(),
            }
        )
    return {"items": items}


ADAPTERS: dict[str, Adapter] = {
    "transformers.XLMTokenizer": tokenizer,
    "transformers.XLMModel": hugging_face,
    "transformers.XLMWithLMHeadModel": hugging_face,
    "transformers.XLMFor": hugging_face,
    "TransformerModel.fwd": original,
    "EncDecTrainer.mt_step": translation,
    "add_noise": add_noise,
    "utils.concat_batches": concat_batches,
    "concat-batches": concat_batches,
    "mask_out": mask_out,
    "src.optim": lr_schedule,
}
