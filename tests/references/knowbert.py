"""KnowBert (allenai/kb): the whole model with its sources of knowledge, and the candidates of
Wikipedia's mentions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case, Output
from tests.references.text_models import at_real, load
from zoo.data.candidates import Candidates
from zoo.data.knowledge.lexicon import EntityLexicon, candidate_mentions
from zoo.data.masking import IGNORED
from zoo.tasks.knowledge import linked_entities

SOFTMAX_THRESHOLD = -990.0


def knowbert(case: Case) -> dict[str, Any]:
    inputs = case.inputs
    model = load(case, "pretraining", "knowbert")
    config = model.config
    sources = list(config.knowledge)
    candidates = {
        name: Candidates(*(inputs[f"{name}_candidate_{part}"] for part in ("spans", "entities", "entity_priors")))
        for name in sources
    }
    labels: dict[str, Any] = {}
    if "lm_labels" in inputs:
        labels["labels"] = inputs["lm_labels"].masked_fill(inputs["lm_labels"] == 0, IGNORED)
    if "next_sentence_label" in inputs:
        labels["next_sentence_label"] = inputs["next_sentence_label"].flatten()
    gold = {name: inputs[f"{name}_gold_entities"].squeeze(-1) for name in sources if f"{name}_gold_entities" in inputs}
    real = inputs["tokens"] > 0
    kept: dict[str, Tensor] = {}
    places = {f"bert_layer.{i}": block for i, block in enumerate(model.model.encoder.blocks)}
    for name in sources:
        linker = model.model.knowledge[name].linker
        places |= {f"{name}_projected_bert_representations": linker.projection}
        places |= {f"{name}_projected_span_representations": linker.span_encoder}
    hooks = [
        p.register_forward_hook(lambda _m, _i, out, name=name: kept.update({name: out})) for name, p in places.items()
    ]
    with torch.no_grad(), zoo.packing(False):
        result = model(
            inputs["tokens"],
            real,
            inputs.get("segment_ids"),
            entity_candidates=candidates,
            gold_entities=gold,
            output_hidden_states=True,
            output_attentions=True,
            **labels,
        )
    for hook in hooks:
        hook.remove()
    outputs = {name: at_real(value, real) for name, value in kept.items() if "span" not in name}
    outputs |= {
        "contextual_embeddings": at_real(result.encoded.last_hidden_state, real),
        "pooled_output": result.encoded.pooler_output,
        "loss": result.loss,
        "lm_logits": at_real(result.prediction_logits, real),
        "nsp_logits": result.seq_relationship_logits,
        "lm_loss": result.losses.get("masked_lm"),
        "nsp_loss": result.losses.get("next_sentence"),
    }
    for name in sources:
        links, spans = result.encoded.links[name], candidates[name].spans
        there = spans[:, :, 0] >= 0
        margin = config.knowledge[name].loss == "margin"
        threshold = config.knowledge[name].threshold if margin else SOFTMAX_THRESHOLD
        looking = (
            real[:, None, :, None] & there.any(1)[:, None, None, None]
        )  # a text without mentions looks at padded spans there
        outputs |= {
            f"{name}_linking_scores": links.scores,
            f"{name}_entity_attention_probs": Output(links.attention, where=looking.expand_as(links.attention)),
            f"{name}_weighted_entity_embeddings": at_real(links.entities, there),
            f"{name}_projected_span_representations": at_real(kept[f"{name}_projected_span_representations"], there),
            f"{name}_linking_loss": result.losses.get(f"{name}_linking"),
            f"{name}_decoded": linked_entities(links.scores, candidates[name], threshold, config.null_entity_id),
        }
    return outputs


def wiki_candidates(case: Case) -> dict[str, Any]:
    """A text without mentions has one span of padding."""
    given = case.given
    lines = [
        "\t".join([mention, str(total), *(",".join(entry) for entry in entries)])
        for mention, total, entries in given["priors"]
    ]
    allowed = given.get("allowed_entities")
    lexicon = EntityLexicon.read(
        lines, max_candidates=given["max_candidates"], allowed=None if allowed is None else set(allowed)
    )
    mentions = []
    for text in given["texts"]:
        tokens = text.split(" ")
        found = candidate_mentions(
            tokens, lexicon, max_width=5, stop_words=set(given["stop_words"]), stop_symbols=set(given["stop_symbols"])
        )
        mentions.append(
            {
                "tokenized_text": tokens,
                "candidate_spans": [list(span) for span, _ in found] or [[-1, -1]],
                "candidate_entities": [[c.entity for c in candidates] for _, candidates in found] or [["@@PADDING@@"]],
                "candidate_entity_priors": [[c.prior for c in candidates] for _, candidates in found] or [[1.0]],
            }
        )
    lowered = {
        mention: [[c.key, c.entity, c.prior] for c in candidates] for mention, candidates in lexicon.lowered.items()
    }
    return {"mentions": mentions, "lowercased_table": lowered}


ADAPTERS: dict[str, Adapter] = {"kb.knowbert.KnowBert": knowbert, "get_mentions_raw_text": wiki_candidates}
