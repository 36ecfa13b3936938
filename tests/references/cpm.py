"""CPM: GPT-2 as transformers and as CPM's own code (Megatron's first version) run it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.references.case import Case
from tests.references.text_models import at_real, encoded_outputs, load, real_of
from zoo.layers.cache import KeyValueCache


def hugging_face(case: Case) -> Mapping[str, Any]:
    """GPT2LMHeadModel, whose labels are shifted inside, or GPT2Model."""
    task = "causal-lm" if "LMHead" in case.object else None
    model = load(case, task, "hf-gpt2")
    names = ("input_ids", "attention_mask", "position_ids", "inputs_embeds", *(["labels"] if task else []))
    given = {name: case.inputs[name] for name in names if name in case.inputs}
    with torch.no_grad():
        result = model(**given, output_hidden_states=True, output_attentions=True)
    real = real_of(case)
    if task is None:
        return encoded_outputs(result, real)
    loss = {} if result.loss is None else {"loss": result.loss}
    return {**encoded_outputs(result.encoded, real), "logits": at_real(result.logits, real), **loss}


def megatron(case: Case) -> Mapping[str, Any]:
    """Logits, those of the second half behind a cache of the first, what leaves each block, and the loss
    of the next token.
    """
    model = load(case, "causal-lm")
    ids = case.inputs["input_ids"].long()
    given = {"position_ids": case.inputs["position_ids"].long()} if "position_ids" in case.inputs else {}
    left: list[Tensor] = []  # of each block: the final norm is not the last one's
    hooks = [block.register_forward_hook(lambda *call: left.append(call[2])) for block in model.model.encoder.blocks]
    with torch.no_grad():
        result = model(ids, labels=ids, **given)
    for hook in hooks:
        hook.remove()
    cache, half = KeyValueCache(), ids.shape[1] // 2
    with torch.no_grad():
        for part in (ids[:, :half], ids[:, half:]):
            cached = model.predict(model.model(part, cache=cache).last_hidden_state)
    return {
        "logits": result.logits,
        "logits_cached": cached,
        "lm_loss": result.loss,
        **{f"layer.{i}": state for i, state in enumerate(left)},
    }


ADAPTERS = {"transformers.GPT2": hugging_face, "gpt2_modeling.GPT2Model": megatron}
