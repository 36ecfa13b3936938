"""Tasks over a picture and its words: what each head reads, its logits and its loss. Inputs are
those of the model below, plus labels.

A head's form is the family's own unless the option ``head`` says another: "linear" (one Linear),
"mlp" (twice as wide in the middle, as ViLBERT's classifier over answers), "transform" (BERT's
transform before the Linear, as all of MMF's heads) or "weight-normed" (vilbert_beta's). A
checkpoint's own form is seen from its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.layers.heads import AnswerHead, ScaledHead, TransformHead
from zoo.models.base.model import Model, VisionLanguageModel, need_pooler
from zoo.models.base.outputs import TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks import text
from zoo.tasks.base import TaskModel, along, with_an_axis
from zoo.tasks.losses import (
    FAR,
    binary_loss,
    check_labels,
    classification_loss,
    finite_labels,
    label_tensor,
    one_of,
    real_labels,
    row_loss,
    soft_answer_loss,
    widened,
)
from zoo.tasks.pairs import PAIRED, PairedAttentionHead
from zoo.tasks.ranking import check_ranking, ranking_loss

FORMS = ("linear", "mlp", "transform", "weight-normed")
SHOWN_BY = {
    "first.query.weight": PAIRED,
    "weight": "linear",
    "dense.direction": "weight-normed",
    "dense.weight": "mlp",
    "transform.weight": "transform",
}


def make_head(form: str, input_size: int, num_labels: int, config: Any, hidden_size: int | None = None) -> nn.Module:
    """A head of one of the `FORMS`; ``hidden_size`` where a form has a middle (twice the input
    unless said).
    """
    eps = config.norm_eps
    if form == "linear":
        return nn.Linear(input_size, num_labels)
    if form == "mlp":
        return AnswerHead(input_size, hidden_size or 2 * input_size, num_labels, eps)
    if form == "transform":
        return TransformHead(input_size, num_labels, eps, config.activation)
    if form == "weight-normed":
        return ScaledHead(input_size, hidden_size or 2 * input_size, num_labels)
    raise ConfigError(f"head must be one of {', '.join(FORMS)}, got {form!r}")


class VisionTask(TaskModel):
    """Base: a head of the task's own name, of the form that its options ask for, else as the family
    builds it.
    """

    @classmethod
    def own_head(
        cls, model: Model, name: str, num_labels: int, options: Mapping[str, Any], times: int = 1
    ) -> nn.Module:
        if (form := options.get("head")) is None:
            return super().own_head(model, name, num_labels, options, times)
        size = model.widths(model.config)[cls.reads]
        return make_head(form, times * size, num_labels, model.config, 2 * size)

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        name = f"heads.{spec.name.replace('-', '_')}"
        shown = next((form for ending, form in SHOWN_BY.items() if f"{name}.{ending}" in sizes), None)
        if shown == "mlp" and f"{name}.norm.weight" not in sizes:  # a head of the family's own
            shown = None
        found: dict[str, Any] = {"head": shown} if shown and "head" in spec.options else {}
        last = next(
            (sizes[n] for n in (f"{name}.weight", f"{name}.output.weight", f"{name}.output.direction") if n in sizes),
            None,
        )
        return found | ({"num_labels": last[0]} if last and "num_labels" in spec.options else {})


class Classification(VisionTask):
    """A label for a picture and its words, from the pooled vector."""

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,) int for one class each, (batch, classes) float for several or soft ones
        -> logits (batch, classes).
        """
        encoded = self.model(**self.given(inputs, named))
        return self.judged(need_pooler(encoded), labels, encoded)

    def judged(self, vector: Tensor, labels: Tensor | None, encoded: Any) -> TaskOutput:
        """What the head makes of the vector, and its loss."""
        ((name, head),) = self.heads.items()
        logits = head(self.dropout(vector))
        if labels is None:
            return TaskOutput(logits=logits, encoded=encoded)
        labels = label_tensor(labels)
        if labels.is_floating_point():
            check_labels(labels, tuple(logits.shape), "labels")
        else:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
        loss = classification_loss(logits, labels, self.options.get("problem_type"))
        return TaskOutput(loss, logits, losses={name: loss}, encoded=encoded)


class ImageClassification(Classification):
    """A label for a picture, from its pooled vector; of two towers the image tower's, as a linear probe has it."""

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels as of `Classification` -> logits (batch, classes)."""
        encoded = self.model(**self.given(inputs, named))
        return self.judged(self.model.offers["picture"].read(encoded), labels, encoded)


class VisualEntailment(Classification):
    """Does the picture entail the sentence? The order of the three labels is the data's."""


class VisualReasoning(Classification):
    """Is a sentence true of two pictures?

    With ``pairs`` each picture runs with the sentence on its own and the two pooled vectors are
    joined; visual inputs are (batch, 2, regions, ...), and so are text inputs or (batch, length)
    ones. Without, both pictures' regions stand in one sequence, told apart by visual_token_type_ids
    (VisualBERT's own form). ``pairs`` None: as the family does it. ``head="paired-attention"``: the two
    sequences look at each other before they are pooled (`zoo.tasks.pairs`).
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        assert isinstance(model, VisionLanguageModel)
        pairs = model.pairs_of_pictures if options["pairs"] is None else options["pairs"]
        if options["head"] == PAIRED:
            if not pairs:
                raise ConfigError(f"head={PAIRED!r} is for pairs of pictures; leave pairs=False out")
            head: nn.Module = PairedAttentionHead(model.config, options["num_labels"])
        else:
            head = cls.own_head(model, "visual_reasoning", options["num_labels"], options, 2 if pairs else 1)
        made = cls(model, {"visual_reasoning": head}, {**options, "pairs": pairs})
        made.several = ("regions", 2) if pairs else None
        return made

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        found = super().options_from(sizes, spec, config, model_class)
        name = f"heads.{spec.name.replace('-', '_')}"
        first = next(
            (sizes[n] for end, form in SHOWN_BY.items() if form != PAIRED and (n := f"{name}.{end}") in sizes), None
        )
        return found | ({} if first is None else {"pairs": first[1] == 2 * model_class.widths(config)["pooled"]})

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        if not self.options["pairs"]:
            return super().forward(*inputs, labels=labels, **named)
        given, _ = along(self.model, self.given(inputs, named), "pictures", 2)
        encoded = self.model(**given)
        if self.options["head"] == PAIRED:
            states = self.model.offers["words"].read(encoded)
            head: Any = self.heads["visual_reasoning"]
            joined = head.pooled(states, self.model.padding_of("words", given, encoded).real)
            return self.judged(joined, labels, encoded)
        joined = rearrange(need_pooler(encoded), "(batch pair) size -> batch (pair size)", pair=2)
        return self.judged(joined, labels, encoded)


class VisualQuestionAnswering(VisionTask):
    """An answer to a question about a picture: ``logits`` (batch, answers), read where the family
    reads it.
    """

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, answers) float soft scores, or (batch,) int."""
        given = self.given(inputs, named)
        encoded = self.model(**given)
        model: Any = self.model
        logits = self.heads["visual_question_answering"](self.dropout(model.answer_vector(given, encoded)))
        loss = None
        labels = None if labels is None else label_tensor(labels)
        if labels is not None and labels.is_floating_point():
            check_labels(labels, tuple(logits.shape), "labels")
            loss = soft_answer_loss(logits, labels, str(model.answer_loss))
        elif labels is not None:
            loss = row_loss(logits, labels)
        return TaskOutput(loss, logits, losses={} if loss is None else {"answer": loss}, encoded=encoded)


class VisionMultipleChoice(VisionTask, text.MultipleChoice):
    """The right one of several pairs of words and picture: ``logits`` (batch, choices).

    A head of two outputs judges each choice alone, wrong or right (UNITER): the second is its score, and
    the loss is the mean over all choices. So does a head of one where the family says so (ERNIE-ViL).
    """

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,): the number of the right one; of a head of two outputs also (batch, choices),
        1/0 = right or wrong, -100 = left out.
        """
        given, choices = along(self.model, self.given(inputs, named), "choices")
        encoded = self.model(**given)
        (head,) = self.heads.values()
        scores = head(self.dropout(need_pooler(encoded)))  # (batch · choices, 1 or 2)
        logits = scores[:, -1].view(-1, choices)
        judged = {"choice": scores} if scores.shape[1] > 1 else {}
        if labels is None:
            return TaskOutput(logits=logits, scores=judged, encoded=encoded)
        loss = self.choice_loss(scores, logits, label_tensor(labels))
        return TaskOutput(loss, logits, losses={"choice": loss}, scores=judged, encoded=encoded)

    def choice_loss(self, scores: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """scores (batch · choices, 1 or 2), logits (batch, choices)."""
        model: Any = self.model
        if scores.shape[1] == 1 and model.choice_loss == "softmax":
            return row_loss(logits, labels)
        if labels.dim() == 1:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
            labels = one_of(labels, logits.shape[1])
        check_labels(labels, tuple(logits.shape), "labels", 2, integers=True)
        return row_loss(scores, labels.flatten()) if scores.shape[1] == 2 else binary_loss(logits, labels, None)


class Retrieval(VisionMultipleChoice):
    """How well words and picture match: ``logits`` (batch,), or (batch, choices) for inputs with
    choices, of which training tells one. ``ranking``: the loss over choices, one of
    `zoo.tasks.ranking.RANKING_LOSSES`, the family's own by default, with its ``margin``.
    """

    several = None

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        check_ranking(options)
        return super().build(model, options, task)

    def choice_loss(self, scores: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        model: Any = self.model
        return ranking_loss(self.options["ranking"] or model.ranking_loss, logits, labels, self.options["margin"])

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,): the number of the right choice; of ``ranking="contrast"`` also (batch,
        choices), 1/0 = right or wrong, for several right ones; for pairs without choices 1/0 = they
        match or not, -100 = left out.
        """
        given = self.given(inputs, named)
        if with_an_axis(self.model, given):
            return super().forward(labels=labels, **given)
        encoded = self.model(**given)
        logits = self.heads["image_text_retrieval"](self.dropout(need_pooler(encoded))).squeeze(1)
        if labels is None:
            return TaskOutput(logits=logits, encoded=encoded)
        check_labels(labels, tuple(logits.shape), "labels")
        loss = binary_loss(logits, labels, None)
        return TaskOutput(loss, logits, losses={"match": loss}, encoded=encoded)


class Grounding(VisionTask):
    """The region that an expression means: ``logits`` (batch, regions), `FAR` below the others at
    padding. ``ranking``: the loss for integer labels, "softmax" over the regions, or "hardest", the
    hinge over sigmoids of the wrong region that scores highest, with its ``margin`` (UNITER's other
    loss, without its share of wrong regions drawn at random).
    """

    reads = "image"

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        check_ranking(options)
        return super().build(model, options, task)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, regions) float for soft scores (binary cross entropy summed over regions),
        or (batch,) int.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        real = self.model.padding_of("regions", given, encoded).real
        logits = region_scores(self.heads["grounding"], self.dropout(encoded.image.last_hidden_state), real)
        if labels is None:
            return TaskOutput(logits=logits, encoded=encoded)
        labels = label_tensor(labels)
        if labels.is_floating_point():
            check_labels(labels, tuple(logits.shape), "labels")
            model: Any = self.model
            loss = (
                binary_loss(logits, labels, real)
                if model.grounding_loss == "mean"
                else soft_answer_loss(logits, labels, "bce", real)
            )
        else:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
            if real is not None:
                there = real.gather(1, labels.clamp(min=0)[:, None]).squeeze(1)
                labels = real_labels(labels[:, None], there[:, None])[:, 0]
            loss = ranking_loss(self.options["ranking"] or "softmax", logits, labels, self.options["margin"])
        return TaskOutput(loss, logits, losses={"grounding": loss}, encoded=encoded)


class RegionToPhrase(VisionTask):
    """The regions that phrases mean: ``logits`` (batch, phrases, regions), `FAR` at padded
    regions.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        return cls(model, {"region_to_phrase": model.heads["region_to_phrase"](model.config)}, options)

    def forward(
        self, *inputs: Tensor, phrase_positions: Tensor, labels: Tensor | None = None, **named: Any
    ) -> TaskOutput:
        """phrase_positions (batch, phrases): the place of each phrase in the text, -1 = padding
        (its scores are those of place 0); labels (batch, phrases, regions): a distribution over
        regions for each phrase, zeros for padding. The loss is their KL divergence, summed, divided
        by the rows that have a real phrase and a real region.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        states, regions = encoded.text.last_hidden_state, encoded.image.last_hidden_state
        phrase_positions = label_tensor(phrase_positions, "phrase_positions")
        places = phrase_positions.clamp(min=0)
        phrases = states.gather(1, places.unsqueeze(2).expand(-1, -1, states.shape[2]))  # (batch, phrases, hidden)
        logits = self.heads["region_to_phrase"](phrases, regions)
        real = self.model.padding_of("regions", given, encoded).real
        logits = logits if real is None else logits.masked_fill(~real.unsqueeze(1), FAR)
        if labels is None:
            return TaskOutput(logits=logits, encoded=encoded)
        check_labels(labels, tuple(logits.shape), "labels")
        counted = phrase_positions >= 0
        words = self.model.padding_of("words", given, encoded).real
        if words is not None:
            counted = counted & words.gather(1, places)
        counted = counted.unsqueeze(2).expand(logits.shape)  # (batch, phrases, regions)
        counted = counted if real is None else counted & real.unsqueeze(1)
        wanted = finite_labels(torch.where(counted, labels, 0)).to(widened(logits).dtype)
        loss = F.kl_div(widened(logits).log_softmax(-1), wanted, reduction="sum")
        loss = loss / counted.flatten(1).any(1).sum().clamp(min=1)
        return TaskOutput(loss, logits, losses={"region_to_phrase": loss}, encoded=encoded)


def region_scores(head: nn.Module, regions: Tensor, real: Tensor | None) -> Tensor:
    """One score for each region, (batch, regions, hidden) -> (batch, regions), with `FAR` added at
    padding.
    """
    scores = head(regions).squeeze(2)
    return scores if real is None else scores + torch.where(real, 0.0, FAR).to(scores.dtype)
