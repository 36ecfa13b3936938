"""Tasks over a picture and its words: what each head reads, its logits and its loss. Inputs are
those of the model below, plus labels.

A head's form is the family's own unless the option ``head`` says another: "linear" (one Linear),
"mlp" (twice as wide in the middle, as ViLBERT's classifier over answers), "transform" (BERT's
transform before the Linear, as all of MMF's heads) or "weight-normed" (vilbert_beta's). A
checkpoint's own form is seen from its tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError, TaskError
from zoo.layers.heads import AnswerHead, ScaledHead, TransformHead
from zoo.layers.padding import Padding, first_columns
from zoo.models.base.model import Model, VisionLanguageModel, need_pooler
from zoo.models.base.outputs import Joint, TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks.base import TaskModel, check_labels
from zoo.tasks.losses import (
    REGION_TARGETS,
    classification_loss,
    region_loss,
    soft_answer_loss,
    token_cross_entropy,
    widened,
)

TEXTS, PICTURES = ("input_ids", "inputs_embeds"), ("visual_features",)  # what a text and a picture are read from
FAR = (
    -10_000.0
)  # added to the score of a padded region, as the systems do; finite, so that losses over all regions stay so
FORMS = ("linear", "mlp", "transform", "weight-normed")
SHOWN_BY = {
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
    """Base: inputs by name, and a head of the task's own name, built as the family builds it."""

    reads: ClassVar[str] = "pooled"

    def __init__(self, model: Model, heads: Mapping[str, nn.Module], options: Mapping[str, Any]) -> None:
        super().__init__(model, heads, options)
        self.names = tuple(inspect.signature(model.forward).parameters)

    @classmethod
    def own_head(
        cls, model: Model, name: str, options: Mapping[str, Any], num_labels: int, times: int = 1
    ) -> nn.Module:
        """The head called ``name``: of the form asked for, else as the family builds it, else a
        Linear. ``times``: vectors joined.
        """
        factory, form = model.task_heads.get(name), options.get("head")
        if form is None and factory is not None:
            return factory(model.config, num_labels)
        size = model.widths(model.config)[cls.reads]
        return make_head(form or "linear", times * size, num_labels, model.config, 2 * size)

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        name = f"heads.{spec.name.replace('-', '_')}"
        shown = next((form for ending, form in SHOWN_BY.items() if f"{name}.{ending}" in sizes), None)
        found: dict[str, Any] = {"head": shown} if shown and "head" in spec.options else {}
        last = next(
            (sizes[n] for n in (f"{name}.weight", f"{name}.output.weight", f"{name}.output.direction") if n in sizes),
            None,
        )
        return found | ({"num_labels": last[0]} if last and "num_labels" in spec.options else {})

    def given(self, inputs: tuple[Tensor, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, with the masks that lengths alone tell."""
        given = dict(zip(self.names, inputs, strict=False)) | dict(named)
        for counts, mask, beside in (("lengths", "attention_mask", TEXTS), ("visual_lengths", "visual_mask", PICTURES)):
            x = next((given[name] for name in beside if given.get(name) is not None), None)
            if given.get(counts) is not None and given.get(mask) is None and x is not None:
                shape = x.shape[:-1] if x.is_floating_point() else x.shape
                flat = first_columns(given[counts], (shape[:-1].numel(), shape[-1]), counts).view(shape)
                given[mask] = flat.to(x.device, non_blocking=True)
        return given

    def encode(self, inputs: tuple[Tensor, ...], named: Mapping[str, Any]) -> Any:
        return self.model(**self.given(inputs, named))

    def match(self, encoded: Any) -> Tensor:
        """Scores (batch, 2) of the pooled vector for "belongs together" and "does not", in the
        family's order.
        """
        rate: Any = self.model.matching_dropout
        return self.heads["image_text_matching"](F.dropout(need_pooler(encoded), rate, self.training))

    def predict_words(self, encoded: Any, given: Mapping[str, Any]) -> Tensor:
        """Word scores at real positions, zeros elsewhere: over text and regions where one encoder
        reads both.
        """
        states = (encoded if isinstance(encoded, Joint) else encoded.text).last_hidden_state
        model: Any = self.model
        padding = model.word_padding(given, encoded)
        return padding.unpack(self.heads["masked_lm"](padding.pack(states), self.token_table))


class MaskedLM(VisionTask):
    """The words behind the masks: ``prediction_logits`` (batch, positions, vocabulary), where one
    encoder reads both over regions too.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"masked_lm": model.heads["masked_lm"](model.config)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, length), or over all positions: the true ids at masked places, -100
        elsewhere.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        logits = self.predict_words(encoded, given)
        loss = None if labels is None else word_loss(encoded, logits, labels)
        return TaskOutput(loss, {} if loss is None else {"masked_lm": loss}, logits, logits, encoded=encoded)


def word_loss(encoded: Any, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the labels that are not -100: (batch, positions), or for the text
    alone where it shares its sequence.
    """
    lengths = (logits.shape[1], encoded.text_length) if isinstance(encoded, Joint) else (logits.shape[1],)
    if labels.dim() != 2 or labels.shape[1] not in lengths:
        raise TaskError(
            f"labels must be (batch, length) with {' or '.join(map(str, lengths))} positions, got {tuple(labels.shape)}"
        )
    check_labels(labels, (logits.shape[0], labels.shape[1]), "labels", logits.shape[2])
    return token_cross_entropy(logits[:, : labels.shape[1]], labels)


class MaskedRegion(VisionTask):
    """The regions behind the masks: ``region_logits`` (batch, regions, target)."""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        _check_target(options)
        return cls(model, {"masked_region": model.heads["masked_region"](model.config)}, options)

    def forward(
        self,
        *inputs: Tensor,
        region_labels: Tensor | None = None,
        region_targets: Tensor | None = None,
        negatives: Tensor | None = None,
        **named: Any,
    ) -> TaskOutput:
        """See `zoo.tasks.losses.region_loss` for the labels."""
        encoded = self.encode(inputs, named)
        logits = self.heads["masked_region"](encoded.image.last_hidden_state)
        loss = _region_loss(self.options, logits, region_labels, region_targets, negatives)
        losses = {} if loss is None else {"masked_region": loss}
        return TaskOutput(loss, losses, logits, region_logits=logits, encoded=encoded)


class ImageTextMatching(VisionTask):
    """Do the words belong to the picture? ``logits`` (batch, 2); which index says yes is the
    family's own (see its page).
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"image_text_matching": model.heads["image_text_matching"](model.config)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,) 0 or 1."""
        encoded = self.encode(inputs, named)
        logits = self.match(encoded)
        loss = None if labels is None else _matching_loss(logits, labels)
        losses = {} if loss is None else {"image_text_matching": loss}
        return TaskOutput(loss, losses, logits, seq_relationship_logits=logits, encoded=encoded)


class Pretraining(VisionTask):
    """Masked words, image-text matching and, where the family has the head, masked regions; the
    losses are summed with equal weight.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        _check_target(options)
        names = [name for name in ("masked_lm", "masked_region", "image_text_matching") if name in model.heads]
        return cls(model, {name: model.heads[name](model.config) for name in names}, options)

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return tuple(
            name for name in ("masked_lm", "masked_region", "image_text_matching") if name in model_class.heads
        )

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        match_labels: Tensor | None = None,
        region_labels: Tensor | None = None,
        region_targets: Tensor | None = None,
        negatives: Tensor | None = None,
        **named: Any,
    ) -> TaskOutput:
        """labels: words, see `word_loss`; match_labels (batch,) 0 or 1; the rest: regions, see
        `zoo.tasks.losses.region_loss`.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        words = self.predict_words(encoded, given)
        matching = self.match(encoded)
        regions = (
            self.heads["masked_region"](encoded.image.last_hidden_state) if "masked_region" in self.heads else None
        )
        losses = {}
        if labels is not None:
            losses["masked_lm"] = word_loss(encoded, words, labels)
        if region_labels is not None:
            if regions is None:
                raise InputError(
                    "region_labels were given, but this family has no masked_region head: its regions are never masked"
                )
            losses["masked_region"] = _region_loss(self.options, regions, region_labels, region_targets, negatives)  # type: ignore[assignment]
        if match_labels is not None:
            losses["image_text_matching"] = _matching_loss(matching, match_labels)
        total: Any = sum(losses.values()) if losses else None  # type: ignore[arg-type]
        return TaskOutput(total, losses, None, words, matching, encoded=encoded, region_logits=regions)  # type: ignore[arg-type]


class Classification(VisionTask):
    """A label for a picture and its words, from the pooled vector."""

    name: ClassVar[str] = "sequence_classification"

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {cls.name: cls.own_head(model, cls.name, options, options["num_labels"])}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,) int for one class each, (batch, classes) float for several or soft ones
        -> logits (batch, classes).
        """
        encoded = self.encode(inputs, named)
        logits = self.heads[self.name](self.dropout(need_pooler(encoded)))
        return _classified(self.name, logits, labels, self.options.get("problem_type"), encoded)


class VisualEntailment(Classification):
    """Does the picture entail the sentence? The order of the three labels is the data's."""

    name = "visual_entailment"


class VisualReasoning(Classification):
    """Is a sentence true of two pictures?

    With ``pairs`` each picture runs with the sentence on its own and the two pooled vectors are
    joined; visual inputs are (batch, 2, regions, ...), and so are text inputs or (batch, length)
    ones. Without, both pictures' regions stand in one sequence, told apart by visual_token_type_ids
    (VisualBERT's own form). ``pairs`` None: as the family does it.
    """

    name = "visual_reasoning"

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        assert isinstance(model, VisionLanguageModel)
        pairs = model.pairs_of_pictures if options["pairs"] is None else options["pairs"]
        options = {**options, "pairs": pairs}
        return cls(
            model, {cls.name: cls.own_head(model, cls.name, options, options["num_labels"], 2 if pairs else 1)}, options
        )

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        found = super().options_from(sizes, spec, config, model_class)
        name = f"heads.{cls.name}"
        first = next((sizes[n] for ending in SHOWN_BY if (n := f"{name}.{ending}") in sizes), None)
        return found | ({} if first is None else {"pairs": first[1] == 2 * model_class.widths(config)["pooled"]})

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        if not self.options["pairs"]:
            return super().forward(*inputs, labels=labels, **named)
        encoded = self.model(**along(self.given(inputs, named), "pictures"))
        joined = rearrange(need_pooler(encoded), "(batch pair) size -> batch (pair size)", pair=2)
        return _classified(self.name, self.heads[self.name](self.dropout(joined)), labels, None, encoded)


class VisualQuestionAnswering(VisionTask):
    """An answer to a question about a picture: ``logits`` (batch, answers), read where the family
    reads it.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        head = cls.own_head(model, "visual_question_answering", options, options["num_labels"])
        return cls(model, {"visual_question_answering": head}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, answers) float soft scores, or (batch,) int."""
        given = self.given(inputs, named)
        encoded = self.model(**given)
        if self.model.answers_at == "last-word":
            vector = before_last(encoded.text.last_hidden_state, given.get("attention_mask"))
        else:
            vector = need_pooler(encoded)
        logits = self.heads["visual_question_answering"](self.dropout(vector))
        loss = None
        if labels is not None and labels.is_floating_point():
            check_labels(labels, tuple(logits.shape), "labels")
            loss = soft_answer_loss(logits, labels, str(self.model.answer_loss))
        elif labels is not None:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
            loss = F.cross_entropy(widened(logits), labels)
        return TaskOutput(loss, {} if loss is None else {"answer": loss}, logits, encoded=encoded)


class MultipleChoice(VisionTask):
    """The right one of several pairs of words and picture: ``logits`` (batch, choices).

    Text inputs are (batch, choices, length); visual ones (batch, choices, regions, ...), or (batch,
    regions, ...) for one picture of all.
    """

    name: ClassVar[str] = "multiple_choice"

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {cls.name: cls.own_head(model, cls.name, options, 1)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,): the number of the right one."""
        given = self.given(inputs, named)
        choices = given["input_ids"].shape[1]
        encoded = self.model(**along(given, "choices"))
        scores = self.heads[self.name](self.dropout(need_pooler(encoded)))  # (batch · choices, 1)
        logits = rearrange(scores, "(batch choices) 1 -> batch choices", choices=choices)
        loss = None
        if labels is not None:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
            loss = F.cross_entropy(widened(logits), labels)
        return TaskOutput(loss, {} if loss is None else {"choice": loss}, logits, encoded=encoded)


class Retrieval(MultipleChoice):
    """How well words and picture match: ``logits`` (batch,), or (batch, choices) for inputs with
    choices, of which training tells one.
    """

    name = "image_text_retrieval"

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,): the number of the right choice; for pairs without choices 1/0 = they
        match or not.
        """
        given = self.given(inputs, named)
        if given["input_ids"].dim() == 3:
            return super().forward(labels=labels, **given)
        encoded = self.model(**given)
        logits = self.heads[self.name](self.dropout(need_pooler(encoded))).squeeze(1)
        loss = None
        if labels is not None:
            check_labels(labels, tuple(logits.shape), "labels")
            loss = F.binary_cross_entropy_with_logits(widened(logits), labels.to(widened(logits).dtype))
        return TaskOutput(loss, {} if loss is None else {"match": loss}, logits, encoded=encoded)


class Grounding(VisionTask):
    """The region that an expression means: ``logits`` (batch, regions), `FAR` below the others at
    padding.
    """

    reads = "image"

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"grounding": cls.own_head(model, "grounding", options, 1)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, regions) float for soft scores (binary cross entropy summed over regions),
        or (batch,) int.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        logits = region_scores(
            self.heads["grounding"], self.dropout(encoded.image.last_hidden_state), given.get("visual_mask")
        )
        loss = None
        if labels is not None and labels.is_floating_point():
            check_labels(labels, tuple(logits.shape), "labels")
            loss = soft_answer_loss(logits, labels, "bce")
        elif labels is not None:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
            loss = F.cross_entropy(widened(logits), labels)
        return TaskOutput(loss, {} if loss is None else {"grounding": loss}, logits, encoded=encoded)


class RegionToPhrase(VisionTask):
    """The regions that phrases mean: ``logits`` (batch, phrases, regions), `FAR` at padded
    regions.
    """

    reads = "text"

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"region_to_phrase": model.heads["region_to_phrase"](model.config)}, options)

    def forward(
        self, *inputs: Tensor, phrase_positions: Tensor, labels: Tensor | None = None, **named: Any
    ) -> TaskOutput:
        """phrase_positions (batch, phrases): the place of each phrase in the text, -1 = padding
        (its scores are those of place 0); labels (batch, phrases, regions): a distribution over
        regions for each phrase, zeros for padding. The loss is their KL divergence, summed, divided
        by the batch.
        """
        given = self.given(inputs, named)
        encoded = self.model(**given)
        text, regions = encoded.text.last_hidden_state, encoded.image.last_hidden_state
        places = phrase_positions.clamp(min=0)
        phrases = text.gather(1, places.unsqueeze(2).expand(-1, -1, text.shape[2]))  # (batch, phrases, hidden)
        logits = self.heads["region_to_phrase"](phrases, regions)
        real = Padding.of(
            given.get("visual_mask"), (regions.shape[0], regions.shape[1]), pack=False, name="visual_mask"
        ).real
        logits = logits if real is None else logits.masked_fill(~real.unsqueeze(1), FAR)
        loss = None
        if labels is not None:
            check_labels(labels, tuple(logits.shape), "labels")
            loss = F.kl_div(widened(logits).log_softmax(-1), labels.to(widened(logits).dtype), reduction="batchmean")
        return TaskOutput(loss, {} if loss is None else {"region_to_phrase": loss}, logits, encoded=encoded)


def before_last(states: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The state of the last but one real token, (batch, length, hidden) -> (batch, hidden): the
    word before the closing [SEP].
    """
    if attention_mask is None:
        return states[:, -2]
    real = Padding.of(attention_mask, (states.shape[0], states.shape[1]), pack=False).real
    assert real is not None
    counted = real.cumsum(1)  # 1, 2, ... along the real tokens
    wanted = (counted[:, -1:] - 1).clamp(min=1)
    where = ((counted == wanted) & real).int().argmax(1)
    return states.gather(1, where[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


def region_scores(head: nn.Module, regions: Tensor, visual_mask: Tensor | None) -> Tensor:
    """One score for each region, (batch, regions, hidden) -> (batch, regions), with `FAR` added at
    padding.
    """
    scores = head(regions).squeeze(2)
    if visual_mask is not None:
        visual_mask = visual_mask.repeat(
            scores.shape[0] // visual_mask.shape[0], 1
        )  # where every text met every picture
    real = Padding.of(visual_mask, (regions.shape[0], regions.shape[1]), pack=False, name="visual_mask").real
    return scores if real is None else scores + torch.where(real, 0.0, FAR).to(scores.dtype)


def along(given: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Fold an axis of choices or pictures into the batch: (batch, choices, ...) -> (batch ·
    choices, ...).

    The number of choices is that of the input that has them; a text or a picture that all choices
    share is repeated.
    """
    plain = {
        "input_ids": 2,
        "attention_mask": 2,
        "token_type_ids": 2,
        "position_ids": 2,
        "inputs_embeds": 3,
        "visual_features": 3,
        "visual_boxes": 3,
        "visual_mask": 2,
        "visual_token_type_ids": 2,
        "image_text_alignment": 3,
    }
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor) and name in plain}
    counts = {value.shape[1] for name, value in tensors.items() if value.dim() == plain[name] + 1}
    if len(counts) != 1:
        raise InputError(
            f"inputs with {what} must be (batch, {what}, ...) with one number of {what}, got {sorted(counts) or 'none'}"
        )
    count = counts.pop()
    if what == "pictures" and count != 2:
        raise InputError(
            f"a sentence is judged on two pictures: visual inputs must be (batch, 2, regions, ...), got {count} "
            "pictures"
        )
    folded: dict[str, Any] = {
        name: value.flatten(0, 1) if value.dim() == plain[name] + 1 else value.repeat_interleave(count, 0)
        for name, value in tensors.items()
    }
    for number, beside in (("lengths", TEXTS), ("visual_lengths", PICTURES)):
        shared = next((tensors[name].dim() == plain[name] for name in beside if name in tensors), False)
        if shared and given.get(number) is not None:
            folded[number] = [n for n in given[number] for _ in range(count)]
    return {**given, **folded}


def _classified(name: str, logits: Tensor, labels: Tensor | None, problem_type: str | None, encoded: Any) -> TaskOutput:
    loss = None
    if labels is not None:
        if labels.is_floating_point():
            check_labels(labels, tuple(logits.shape), "labels")
        else:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
        loss = classification_loss(logits, labels, problem_type)
    return TaskOutput(loss, {} if loss is None else {name: loss}, logits, encoded=encoded)


def _matching_loss(logits: Tensor, labels: Tensor) -> Tensor:
    check_labels(labels.flatten(), (logits.shape[0],), "match_labels", 2)
    return F.cross_entropy(widened(logits), labels.flatten())


def _check_target(options: Mapping[str, Any]) -> None:
    if options["region_target"] not in REGION_TARGETS:
        raise ConfigError(f"region_target must be one of {', '.join(REGION_TARGETS)}, got {options['region_target']!r}")


def _region_loss(
    options: Mapping[str, Any], logits: Tensor, labels: Tensor | None, targets: Tensor | None, negatives: Tensor | None
) -> Tensor | None:
    if labels is None:
        return None
    if targets is None:
        raise InputError("region_labels say which regions count; give region_targets too: what they were")
    return region_loss(logits, labels, targets, options["region_target"], options["num_negatives"], negatives)
