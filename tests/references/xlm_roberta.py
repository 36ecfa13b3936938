"""RoBERTa and XLM-R: Hugging Face's classes, and fairseq's model in its old and its new layout."""

from __future__ import annotations

from typing import Any

import torch

from tests.references import text_models
from tests.references.case import Adapter, Case


def hugging_face(layout: str) -> Adapter:
    """The configs of the cases do not say their model_type."""

    def adapter(case: Case) -> dict[str, Any]:
        return dict(text_models.hugging_face(case, layout))

    return adapter


def fairseq(case: Case) -> dict[str, Any]:
    """Features, logits and the summed loss at masked places; padding is found from the ids. The
    2019 form gives features time first.
    """
    fused = any("in_proj" in name for name in case.weights)
    model = text_models.load(case, "masked-lm", "fairseq-roberta-fused" if fused else "fairseq-roberta")
    ids, target = case.inputs["src_tokens"], case.inputs["target"]
    padding = model.config.pad_token_id
    real, chosen = ids != padding, target != padding
    with torch.no_grad():
        result = model(ids, real, labels=torch.where(chosen, target, -100), output_hidden_states=True)
    features = text_models.at_real(result.encoded.last_hidden_state, real)
    if any(name.startswith("decoder.") for name in case.weights):
        features = text_models.at_real(result.encoded.last_hidden_state.transpose(0, 1), real.T)
    return {
        "features": features,
        "logits": text_models.at_real(result.prediction_logits, real),
        "masked_logits": result.prediction_logits[chosen],
        "masked_lm_loss_sum": result.loss * chosen.sum(),
        **{
            f"inner_states.{depth}": text_models.at_real(state.transpose(0, 1), real.T)
            for depth, state in enumerate(result.encoded.hidden_states)
        },
    }


ADAPTERS: dict[str, Adapter] = {
    "transformers.XLMRoberta": hugging_face("hf-xlm-roberta"),
    "transformers.Roberta": hugging_face("hf-roberta"),
    "RobertaModel.forward": fairseq,
}
