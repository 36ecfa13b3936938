"""mBART: transformers' classes, fairseq's model (time first), its denoising noise, and how labels
become decoder inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references import text_models
from tests.references.case import Adapter, Case, Output, Skipped
from zoo.data.denoising import DenoisingNoise, TorchDraws, collate
from zoo.models.base.encoder_decoder import shift_right
from zoo.tasks.losses import label_smoothed_loss, token_cross_entropy

DRAWS = 3000
CALLED = ("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask", "labels")


def hugging_face(case: Case) -> dict[str, Any]:
    """The bare model, or with its word scores and loss."""
    task = "conditional-generation" if "ForConditionalGeneration" in case.object else None
    model = text_models.load(case, task, "hf-mbart")
    body = model if task is None else model.model
    given = {name: case.inputs[name] for name in CALLED if name in case.inputs}
    written = given.get("decoder_input_ids")
    if written is None:  # the bare model of theirs makes it of its source
        written = body.decoder_inputs(given["labels"] if "labels" in given else given["input_ids"])
        given["decoder_input_ids"] = written
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, output_attentions=True)
    decoded = result if task is None else result.encoded
    read, target = text_models.real_of(case), text_models.real_of(case, "decoder_attention_mask")
    outputs: dict[str, Any] = {
        "decoder_input_ids": written,
        "last_hidden_state": text_models.at_real(decoded.last_hidden_state, target),
        "encoder_last_hidden_state": text_models.at_real(decoded.encoder.last_hidden_state, read),
    }
    for side, states, real in (("encoder", decoded.encoder, read), ("decoder", decoded, target)):
        named = text_models.encoded_outputs(states, real) if side == "encoder" else _decoded(states, real)
        outputs |= {f"{side}_{name}": value for name, value in named.items() if name[0] in "ha"}
    for depth, probabilities in enumerate(decoded.cross_attentions):
        outputs[f"cross_attentions.{depth}"] = _queries(probabilities, target)
    if task is not None:
        outputs["logits"] = text_models.at_real(result.logits, target)
        if result.loss is not None:
            outputs["loss"] = result.loss
    return outputs


def _decoded(states: Any, real: Tensor | None) -> dict[str, Any]:
    named = {f"hidden_states.{i}": text_models.at_real(x, real) for i, x in enumerate(states.hidden_states)}
    return named | {f"attentions.{i}": _queries(x, real) for i, x in enumerate(states.attentions)}


def _queries(probabilities: Tensor, real: Tensor | None) -> Any:
    return (
        probabilities if real is None else Output(probabilities, where=real[:, None, :, None].expand_as(probabilities))
    )


def fairseq(case: Case) -> dict[str, Any]:
    """fairseq's model with both losses; states between layers are those before the final norm."""
    config = {name: value.split()[0] if name == "activation_fn" else value for name, value in case.config.items()}
    pad = 1
    model = text_models.load(
        replace(case, info={**case.info, "config": config}), "conditional-generation", "fairseq-mbart"
    )
    inputs = case.inputs
    read = text_models.real_of_lengths(inputs["src_lengths"], inputs["src_tokens"].shape[1])
    previous = inputs["prev_output_tokens"]
    labels = None if "target" not in inputs else inputs["target"].masked_fill(inputs["target"] == pad, -100)
    written = previous != pad
    ends: dict[str, Tensor] = {}
    handles = [
        norm.register_forward_pre_hook(lambda _, given, side=side: ends.update({side: given[0]}))
        for side, norm in (("encoder", model.model.norm), ("decoder", model.model.decoder.norm))
    ]
    with torch.no_grad(), zoo.packing(False):
        result = model(inputs["src_tokens"], read, decoder_input_ids=previous, labels=labels, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    decoded = result.encoded
    outputs: dict[str, Any] = {
        "encoder_out": _time_first(decoded.encoder.last_hidden_state, read),
        "decoder_features": text_models.at_real(decoded.last_hidden_state, written),
        "logits": text_models.at_real(result.logits, written),
    }
    for name, states, last, real in (
        ("encoder_states", decoded.encoder.hidden_states, ends["encoder"], read),
        ("decoder_inner_states", decoded.hidden_states, ends["decoder"], written),
    ):
        outputs |= {f"{name}.{depth}": _time_first(x, real) for depth, x in enumerate((*states[:-1], last))}
    if labels is not None:
        outputs["nll_loss_sum"] = token_cross_entropy(result.logits, labels) * (labels != -100).sum()
        for name in case.answers:
            if name.startswith("label_smoothed_loss_sum_eps"):
                smoothing = float(name.removeprefix("label_smoothed_loss_sum_eps"))
                outputs[name] = label_smoothed_loss(result.logits, labels, smoothing, reduction="sum")
    return outputs


def _time_first(x: Tensor, real: Tensor) -> Output:
    return Output(x.transpose(0, 1), where=real.T)


class Recorded:
    """The reference's own draws, one after another; those of nothing are passed over on both
    sides.
    """

    def __init__(self, draws: Sequence[Sequence[Any]]) -> None:
        self.rest: Iterator[Any] = iter(
            [draw[-1] if isinstance(draw[-1], list) else [draw[-1]] for draw in draws if draw[-1] != []]
        )

    def _next(self, count: int) -> list[Any]:
        drawn = list(next(self.rest)) if count else []
        if len(drawn) != count:
            raise AssertionError(f"the reference drew {len(drawn)} numbers where we draw {count}")
        return drawn

    def permutation(self, count: int) -> list[int]:
        return self._next(count)

    def lengths(self, probabilities: Sequence[float], count: int) -> list[int]:
        return self._next(count)

    def uniform(self, count: int) -> list[float]:
        return self._next(count)

    def integers(self, low: int, high: int, count: int) -> list[int]:
        return self._next(count)


def noise_of(config: dict[str, Any]) -> DenoisingNoise:
    """Ours for fairseq's options."""
    return DenoisingNoise(
        mask_id=config["mask_idx"],
        vocab_size=config["vocab_size"],
        full_stop=config.get("full_stop", config["eos"]),
        mask_share=config["mask"],
        poisson_mean=config.get("poisson_lambda", 3.5),
        random_share=config.get("mask_random", 0.0),
        replace_length=config.get("replace_length", 1),
        permute_share=config.get("permute_sentences", 1.0),
        insert_share=config.get("insert", 0.0),
        rotate_share=config.get("rotate", 0.0),
        masking=config.get("mask_length", "span-poisson"),
        word_starts=_starts(config.get("mask_whole_words")),
    )


def _starts(written: Any) -> list[int] | None:
    """A list of flags by id, or of ids, or nothing."""
    if not isinstance(written, list):
        return None
    flags = len(written) > 0 and set(written) <= {0, 1}
    return [number for number, flag in enumerate(written) if flag] if flags else written


def denoising(case: Case) -> dict[str, Any]:
    """Each text with the recorded draws; the batch of the first draws; frequencies over draws of
    our own.
    """
    noise, pad = noise_of(case.config), case.config["pad"]
    items, firsts, texts = [], [], []
    for item in case.info["items"]:
        source = noise(item["tokens"], Recorded(item["draws_in_order"]))
        items.append({"source": source, "target": item["tokens"]})
        if item["tokens"] not in texts:
            texts.append(item["tokens"])
            firsts.append(source)
    lengths, order = torch.tensor([len(source) for source in firsts]).sort(descending=True)
    batch = collate([firsts[i] for i in order], [texts[i] for i in order], pad)
    collated = {
        "id": order,
        "ntokens": sum(map(len, texts)),
        "src_tokens": batch["input_ids"],
        "src_lengths": lengths,
        "prev_output_tokens": batch["decoder_input_ids"],
        "target": batch["labels"].masked_fill(batch["labels"] == -100, pad),
    }
    return {
        "items": items,
        "collated": collated,
        "statistics": [_statistics(noise, entry) for entry in case.info.get("statistics", [])],
    }


def _statistics(noise: DenoisingNoise, entry: dict[str, Any]) -> dict[str, Any]:
    draws = TorchDraws(torch.Generator().manual_seed(0))
    sources = [noise(entry["tokens"], draws) for _ in range(DRAWS)]
    masks = sum(source.count(noise.mask_id) for source in sources) / DRAWS
    why = f"a mean over {DRAWS} draws"
    return {
        "tokens": entry["tokens"],
        "draws": Skipped("a number of the reference's experiment"),
        "mean_n_mask": Output(masks, tolerance=0.03, reason=why),
        "mean_source_length": Output(sum(map(len, sources)) / DRAWS, tolerance=0.01, reason=why),
        "min_len": Skipped("an extreme of random lengths"),
        "max_len": Skipped("an extreme of random lengths"),
    }


def shift_tokens(case: Case) -> dict[str, Any]:
    pad, end = case.config["pad"], case.config["eos"]
    items = []
    for item in case.info["items"]:
        labels = torch.tensor(item["input"]["labels"])
        items.append(
            {
                "mbart_decoder_input_ids": shift_right(labels, pad),
                f"bart_decoder_input_ids_start{end}": shift_right(labels, pad, end),
            }
        )
    return {"items": items}


ADAPTERS: dict[str, Adapter] = {
    "transformers.MBart": hugging_face,
    "fairseq.models.bart": fairseq,
    "seq2seq-fairseq": fairseq,
    "DenoisingDataset": denoising,
    "denoising-noise": denoising,
    "shift_tokens_right": shift_tokens,
}
