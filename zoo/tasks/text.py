"""Tasks over one text or a pair: what each head reads, its logits and its loss. Inputs are those of
the model below, plus labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.layers.padding import Padding
from zoo.layers.pooler import pool
from zoo.models.base.model import Model, need_pooler
from zoo.models.base.outputs import TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks.base import TaskModel, check_labels, flat_choices, label_head
from zoo.tasks.losses import classification_loss, problem_of, span_loss, token_cross_entropy, widened


class MaskedLM(TaskModel):
    """The words behind the masks: ``prediction_logits`` (batch, length, vocabulary), zeros at
    padding.
    """

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"masked_lm": model.heads["masked_lm"](model.config)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, length): the true ids at masked places, -100 elsewhere."""
        encoded = self.model(*inputs, **named)
        logits = self.predict(encoded.last_hidden_state, padding_of(encoded.last_hidden_state, inputs, named))
        if labels is None:
            return TaskOutput(logits=logits, prediction_logits=logits, encoded=encoded)
        check_labels(labels, tuple(logits.shape[:2]), "labels", logits.shape[2])
        loss = token_cross_entropy(logits, labels)
        return TaskOutput(loss, {"masked_lm": loss}, logits, logits, encoded=encoded)

    def predict(self, hidden: Tensor, padding: Padding) -> Tensor:
        """Word scores, computed at real tokens only."""
        return padding.unpack(self.heads["masked_lm"](padding.pack(hidden), self.token_table))


class Pretraining(MaskedLM):
    """Masked words and the family's sentence objective; the losses are summed with equal weight."""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        names = [name for name in ("masked_lm", "next_sentence", "sentence_order") if name in model.heads]
        return cls(model, {name: model.heads[name](model.config) for name in names}, options)

    def forward(
        self,
        *inputs: Tensor,
        labels: Tensor | None = None,
        next_sentence_label: Tensor | None = None,
        sentence_order_label: Tensor | None = None,
        **named: Any,
    ) -> TaskOutput:
        """labels (batch, length), -100 = left out; next_sentence_label (batch,), 0 = B follows A;
        sentence_order_label (batch,), 0 = kept.
        """
        encoded = self.model(*inputs, **named)
        words = self.predict(encoded.last_hidden_state, padding_of(encoded.last_hidden_state, inputs, named))
        pooled = self.dropout(need_pooler(encoded)) if "sentence_order" in self.heads else need_pooler(encoded)
        follows = self.heads["next_sentence"](pooled) if "next_sentence" in self.heads else None
        order = self.heads["sentence_order"](pooled) if "sentence_order" in self.heads else None
        losses = {}
        if labels is not None:
            check_labels(labels, tuple(words.shape[:2]), "labels", words.shape[2])
            losses["masked_lm"] = token_cross_entropy(words, labels)
        for name, logits, label in (
            ("next_sentence", follows, next_sentence_label),
            ("sentence_order", order, sentence_order_label),
        ):
            if label is not None:
                if logits is None:
                    raise InputError(
                        f"{name}_label was given, but this family has no {name} head; its heads are "
                        f"{', '.join(self.heads)}"
                    )
                check_labels(label.flatten(), (logits.shape[0],), f"{name}_label", 2)
                losses[name] = F.cross_entropy(widened(logits), label.flatten())
        loss = sum(losses.values()) if losses else None
        return TaskOutput(loss, losses, None, words, follows, order, encoded=encoded)  # type: ignore[arg-type]


class _PairJudge(TaskModel):
    """One of two labels for a pair of texts, from the pooled vector."""

    head = ""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {cls.head: model.heads[cls.head](model.config)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,) 0 or 1."""
        encoded = self.model(*inputs, **named)
        pooled = need_pooler(encoded)
        logits = self.heads[self.head](self.dropout(pooled) if self.head == "sentence_order" else pooled)
        loss = None
        if labels is not None:
            check_labels(labels.flatten(), (logits.shape[0],), "labels", 2)
            loss = F.cross_entropy(widened(logits), labels.flatten())
        given = {"seq_relationship_logits" if self.head == "next_sentence" else "sop_logits": logits}
        return TaskOutput(loss, {} if loss is None else {self.head: loss}, logits, encoded=encoded, **given)


class NextSentence(_PairJudge):
    """Does B follow A? ``seq_relationship_logits`` (batch, 2), index 0 = it does."""

    head = "next_sentence"


class SentenceOrder(_PairJudge):
    """Were A and B swapped? ``sop_logits`` (batch, 2), index 0 = they stand in order."""

    head = "sentence_order"


class SequenceClassification(TaskModel):
    """``W dropout(pooled) + b``: a label for a text or a pair."""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(
            model,
            {"sequence_classification": label_head(model, "sequence_classification", options["num_labels"])},
            options,
        )

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch,) int for classes, (batch, classes) float for several at once, (batch,)
        float for one output -> logits (batch, classes).
        """
        encoded = self.model(*inputs, **named)
        if "sequence_classification" in self.model.reads_first:
            hidden = encoded.last_hidden_state
            vector = padding_of(hidden, inputs, named).first(hidden)
        else:
            vector = need_pooler(encoded)
        logits = self.heads["sequence_classification"](self.dropout(vector))  # (batch, classes)
        loss = None
        if labels is not None:
            kind = problem_of(logits, labels, self.options["problem_type"])
            wide = kind == "multi-label" or (kind == "regression" and logits.shape[1] > 1)
            shape = tuple(logits.shape) if wide else (logits.shape[0],)
            column = kind == "regression" and labels.dim() == 2 and not wide  # (batch, 1) does for one output
            check_labels(
                labels[:, 0] if column else labels, shape, "labels", logits.shape[1] if kind == "single-label" else None
            )
            loss = classification_loss(logits, labels, self.options["problem_type"])
        return TaskOutput(loss, {} if loss is None else {"classification": loss}, logits, encoded=encoded)


class TokenClassification(TaskModel):
    """``W dropout(h_t) + b``: a label for each token."""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(
            model, {"token_classification": label_head(model, "token_classification", options["num_labels"])}, options
        )

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """labels (batch, length) int, -100 = left out -> logits (batch, length, classes), zeros at
        padding.
        """
        encoded = self.model(*inputs, **named)
        hidden = encoded.last_hidden_state
        logits = padding_of(hidden, inputs, named, pack=False).unpack(
            self.heads["token_classification"](self.dropout(hidden))
        )
        loss = None
        if labels is not None:
            check_labels(labels, tuple(logits.shape[:2]), "labels", logits.shape[2])
            loss = token_cross_entropy(logits, labels)
        return TaskOutput(loss, {} if loss is None else {"classification": loss}, logits, encoded=encoded)


class QuestionAnswering(TaskModel):
    """``W h_t + b`` with two outputs: is this the answer's first token, is it the last."""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"question_answering": nn.Linear(model.config.hidden_size, 2)}, options)

    def forward(
        self, *inputs: Tensor, start_positions: Tensor | None = None, end_positions: Tensor | None = None, **named: Any
    ) -> TaskOutput:
        """start_positions, end_positions (batch,) int; outside the text = left out -> start_logits,
        end_logits (batch, length), zeros at padding, which the loss does not count among the places
        of an answer.
        """
        encoded = self.model(*inputs, **named)
        padding = padding_of(encoded.last_hidden_state, inputs, named, pack=False)
        start, end = padding.unpack(self.heads["question_answering"](encoded.last_hidden_state)).unbind(-1)
        loss = None
        if (start_positions is None) != (end_positions is None):
            raise InputError("give both start_positions and end_positions, or neither")
        if start_positions is not None and end_positions is not None:
            for name, places in (("start_positions", start_positions), ("end_positions", end_positions)):
                check_labels(places.flatten(), (start.shape[0],), name, integers=True)
            loss = span_loss(start, end, start_positions.flatten(), end_positions.flatten(), padding.real)
        return TaskOutput(
            loss, {} if loss is None else {"span": loss}, start_logits=start, end_logits=end, encoded=encoded
        )


class MultipleChoice(TaskModel):
    """``w dropout(pooled) + b`` for each of several texts; the highest wins."""

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        return cls(model, {"multiple_choice": label_head(model, "multiple_choice", 1)}, options)

    def forward(self, *inputs: Tensor, labels: Tensor | None = None, **named: Any) -> TaskOutput:
        """The model's inputs, (batch, choices, length, ...) each; labels (batch,) -> logits (batch,
        choices).
        """
        first = next(x for x in (*inputs, named.get("input_ids"), named.get("inputs_embeds")) if x is not None)
        flat = {name: flat_choices(x) if isinstance(x, Tensor) else x for name, x in named.items()}
        encoded = self.model(*(flat_choices(x) for x in inputs), **flat)
        scores = self.heads["multiple_choice"](self.dropout(need_pooler(encoded)))  # (batch · choices, 1)
        logits = scores.view(first.shape[0], first.shape[1])
        loss = None
        if labels is not None:
            check_labels(labels, (logits.shape[0],), "labels", logits.shape[1])
            loss = F.cross_entropy(widened(logits), labels)
        return TaskOutput(loss, {} if loss is None else {"choice": loss}, logits, encoded=encoded)


class SentenceEmbedding(TaskModel):
    """One vector for a text: its token states pooled over real tokens, then at length one where
    ``normalize`` says so.
    """

    POOLINGS = ("mean", "max", "cls")

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return ()

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any]) -> TaskModel:
        if options["pooling"] not in cls.POOLINGS:
            raise ConfigError(f"pooling must be one of {', '.join(cls.POOLINGS)}, got {options['pooling']!r}")
        return cls(model, {}, options)

    def forward(self, *inputs: Tensor, **named: Any) -> TaskOutput:
        """-> embedding (batch, hidden)."""
        encoded = self.model(*inputs, **named)
        hidden = encoded.last_hidden_state
        vector = pool(hidden, padding_of(hidden, inputs, named, pack=False).real, self.options["pooling"])
        return TaskOutput(
            embedding=F.normalize(vector, dim=1) if self.options["normalize"] else vector, encoded=encoded
        )


def padding_of(hidden: Tensor, inputs: tuple[Tensor, ...], named: Mapping[str, Any], *, pack: bool = True) -> Padding:
    """Which tokens are real, from a model's inputs: the mask is the second by position, or a
    name.
    """
    mask = inputs[1] if len(inputs) > 1 else named.get("attention_mask")
    return Padding.of(
        mask, (hidden.shape[0], hidden.shape[1]), lengths=named.get("lengths"), pack=pack, device=hidden.device
    )
