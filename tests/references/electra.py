"""ELECTRA (google-research/electra): data and function cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import zoo
from tests.references.case import Adapter, Case
from tests.references.optimizers import train
from tests.references.text_models import LABELS, at_real, encoded_outputs, hugging_face, load, real_of
from zoo.data.masking import write_samples
from zoo.tasks.electra import ElectraDraws, ElectraMasking, ElectraPretraining
from zoo.training.optimizers import BertAdam, decay_groups, layer_depth, layerwise_groups
from zoo.training.schedules import warmup_times_decay


def scatter_update(case: Case) -> dict[str, Any]:
    items = []
    for item in case.given:
        updated, written = write_samples(*(torch.tensor(item[name]) for name in ("sequence", "updates", "positions")))
        items.append({"updated": updated, "mask": written.long()})
    return {"items": items}


def our_depth(name: str, num_layers: int) -> int:
    """``electra.encoder.layer_0.dense.kernel``, the reference's variable with dots, to the depth of
    ours.
    """
    name = name.removeprefix("electra.").removeprefix("generator.")
    return layer_depth(
        name.replace("embeddings_project", "embeddings.projection").replace("encoder.layer_", "encoder.blocks."),
        num_layers,
    )


def layerwise_adam(case: Case) -> dict[str, Tensor]:
    config = case.config
    rate, decay = config["learning_rate"], config["weight_decay_rate"]
    warmup = int(max(config["num_train_steps"] * config.get("warmup_proportion", 0), config["warmup_steps"]))
    schedule = warmup_times_decay(rate, config["num_train_steps"], warmup, config.get("lr_decay_power", 1.0))
    factor = config.get("layerwise_lr_decay_power", -1)

    def make(named: dict[str, Tensor]) -> BertAdam:
        if factor > 0:
            return BertAdam(
                layerwise_groups(named.items(), rate, factor, config["n_transformer_layers"], decay, depth=our_depth),
                lr=rate,
            )
        return BertAdam(decay_groups(named.items(), decay), lr=rate)

    return train(case, make, schedule, rate)


def discriminator(case: Case) -> Mapping[str, Any]:
    """Hugging Face's ElectraForPreTraining: replaced tokens."""
    model, real = load(case, "replaced-token-detection"), real_of(case)
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds", *LABELS)
    with torch.no_grad():
        result = model(
            **{n: case.inputs[n] for n in names if n in case.inputs}, output_hidden_states=True, output_attentions=True
        )
    losses = {} if result.loss is None else {"loss": result.loss}
    return {**encoded_outputs(result.encoded, real), "logits": at_real(result.logits, real), **losses}


def pretraining_step(case: Case) -> Mapping[str, Any]:
    """google-research's PretrainingModel: masking, sampling and both losses, with its recorded
    draws. Both networks out of one file.
    """
    options, inputs = case.config["pretraining_config"], case.inputs
    both = {}
    for network, layout, task in (
        ("generator", "tf-electra-generator", "masked-lm"),
        ("discriminator", "tf-electra", "replaced-token-detection"),
    ):
        sizes = dict(case.config[f"{network}_bert_config"])
        own = network == "generator" and options["untied_generator_embeddings"]
        sizes["embedding_size"] = (
            sizes["hidden_size"] if own or options["embedding_size"] is None else options["embedding_size"]
        )
        both[network] = zoo.load(case.weights, config=sizes, task=task, layout=layout).eval()
    special = case.config["special_ids"]
    step = ElectraPretraining(
        both["generator"],
        both["discriminator"],
        ElectraMasking(
            mask_id=special["[MASK]"],
            special_ids=[special[name] for name in ("[CLS]", "[SEP]", "[MASK]")],
            max_predictions=options["max_predictions_per_seq"],
            mask_probability=options["mask_prob"],
        ),
        weights=(options["gen_weight"], options["disc_weight"]),
        temperature=options["temperature"],
        disallow_correct=options["disallow_correct"],
        shared=not options["untied_generator_embeddings"],
    ).eval()
    draws = ElectraDraws(inputs["sampled_positions"].long(), inputs["replace_uniform"], inputs["gumbel_uniform"])
    mask, segments = inputs["input_mask"].long(), inputs["segment_ids"].long()
    with torch.no_grad():
        result = step(inputs["input_ids"].long(), mask, segments, draws=draws)
        judged = (
            torch.nn.functional.binary_cross_entropy_with_logits(
                result.logits, result.replaced.float(), reduction="none"
            )
            * mask
        )
    real = mask.bool()
    return {
        "masked_input_ids": result.masked_ids,
        "masked_lm_positions": result.positions,
        "masked_lm_ids": result.originals,
        "masked_lm_weights": result.weights,
        "generator_sequence_output": at_real(result.generator.last_hidden_state, real),
        "generator_logits": result.generator_logits,
        "mlm_loss": result.losses["masked_lm"],
        "corrupted_input_ids": result.corrupted_ids,
        "is_fake_tokens": result.replaced.long(),
        "sampled_tokids": result.samples,
        "discriminator_sequence_output": at_real(result.discriminator.last_hidden_state, real),
        "disc_probs": at_real(result.logits.sigmoid(), real),
        "disc_loss": result.losses["replaced_token"],
        "disc_per_example_loss": judged.sum(1) / (mask.sum(1) + 1e-6),
        "total_loss": result.loss,
    }


ADAPTERS: dict[str, Adapter] = {
    "scatter_update": scatter_update,
    "optimization.create_optimizer": layerwise_adam,
    "transformers.ElectraForPreTraining": discriminator,
    "transformers.Electra": hugging_face,
    "run_pretraining.PretrainingModel": pretraining_step,
}
