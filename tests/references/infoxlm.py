"""InfoXLM: the cross-lingual contrastive term, its step, and its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case
from tests.references.contrast import cross_lingual
from zoo.data.translations import TranslationPairs, mixed_pair
from zoo.tasks.losses import token_cross_entropy
from zoo.tasks.memory import momentum_schedule

LAYOUT = "fairseq-infoxlm"
PAD = 1


def swapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file as if the momentum encoder were the trained one."""
    names = {"model_fast": "model_slow", "model_slow": "model_fast"}
    names |= {"proj_matrix_fast": "proj_matrix_slow", "proj_matrix_slow": "proj_matrix_fast"}
    return {".".join([names.get(head, head), *rest]): x for n, x in weights.items() for head, *rest in [n.split(".")]}


def contrastive(case: Case, weights: Mapping[str, Tensor]) -> Any:
    c = case.config
    return zoo.load(
        dict(weights),
        config=c,
        layout=LAYOUT,
        task="cross-lingual-contrast",
        projection="matrix" if c["use_proj"] else "none",
        layer=c["xlco_layer"],
        temperature=c["xlco_softmax_tau"],
        queue_size=c["xlco_queue_size"],
        momentum=c["momentum"],
    )


def pairs(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of ids as views of one length, and which tokens are real."""
    longest = max(one.shape[1], other.shape[1])
    ids = torch.stack([torch.nn.functional.pad(x, (0, longest - x.shape[1]), value=PAD) for x in (one, other)], 1)
    return ids, ids != PAD


def step(case: Case) -> Mapping[str, Any]:
    """One step: the loss with its gradients, the update of the momentum encoder, then the queue."""
    c, given = case.config, case.inputs
    model, slow = contrastive(case, case.weights), contrastive(case, swapped(case.weights))
    model.train().start()
    model.twin.follow(slow.encoder, 0.0)
    model.twin.steps.zero_()
    model.queue.keys.copy_(case.weights["queue"])
    model.queue.pointer.copy_(case.weights["queue_ptr"])
    ids, real = pairs(given["src_tokens"], given["tgt_tokens"])
    model.before_step()
    result = model(ids, real)
    loss = c["xlco_lambda"] * result.loss
    loss.backward()
    model.after_step([result])
    with torch.no_grad():
        kept = [
            side.model(ids[:, view], real[:, view], output_hidden_states=[c["xlco_layer"]]).hidden_states[0][:, 0]
            for view, side in enumerate((model.eval(), slow.eval()))
        ]
        masked = zoo.load(dict(case.weights), config=c, layout=LAYOUT, task="masked-lm").eval()
        tokens, labels = given["mlm_tokens"], given["mlm_target"]
        labels = labels.masked_fill(labels == PAD, -100)
        words = masked(tokens, tokens != PAD).prediction_logits
        mlm = token_cross_entropy(words, labels) * (labels != -100).sum()
    followed = dict(model.twin.twin.named_buffers())
    outputs = {
        "xlco_loss_sum": loss.detach()[None],
        "grad.embed_tokens": model.model.embeddings.token.weight.grad,
        "fast_cls": kept[0],
        "slow_cls": kept[1],
        "fast_rep": result.scores["query"],
        "slow_rep": result.scores["key"],
        "queue_after": model.queue.keys,
        "queue_ptr_after": model.queue.pointer,
        "ncorrect": (result.logits.argmax(1) == 0).sum()[None],
        "mlm_loss_sum": mlm[None],
        "slow_after.embed_tokens": followed["model.embeddings.token.weight"],
        "slow_after.fc1_0": followed["model.encoder.blocks.0.feed_forward.up.weight"],
    }
    if c["use_proj"]:
        outputs |= {
            "grad.proj_matrix_fast": model.heads["projection"].weight.grad[None],
            "slow_after.proj": followed["projection.weight"][None],
        }
    return outputs


def data(case: Case) -> Mapping[str, Any]:
    """Mixed pairs, the batch that they make, and the momentum after some updates."""
    items = []
    for item in case.info["items"]:
        one, its, other, others = item["lines"]
        source, target = mixed_pair((one, its), (other, others), item["mode"])
        items.append({"source": source, "target": target})
    examples = [{"first": item["source"], "second": item["target"]} for item in items]
    batch = TranslationPairs(PAD)(examples)
    lengths = list(batch["lengths"])
    sides = {
        name: batch["input_ids"][:, view, : max(lengths[view::2])]
        for view, name in enumerate(("src_tokens", "tgt_tokens"))
    }
    momentum = [
        {
            "schedule": each["schedule"],
            "values": {step: momentum_schedule(each["schedule"])(int(step)) for step in each["values"]},
        }
        for each in case.info["momentum"]
    ]
    about = {"src_lengths": lengths[::2], "ntokens": sum(lengths), "nsentences": len(items)}
    return {"items": items, "momentum": momentum, "collated": {**sides, **about}}


ADAPTERS: dict[str, Adapter] = {
    "XlCoCriterion.contrastive_loss": cross_lingual,
    "XlcoDataset": data,
    "XlCoCriterion": step,
}
