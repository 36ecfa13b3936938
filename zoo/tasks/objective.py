"""Pre-training objectives: the terms that a family declares (`Model.pretraining`), one of them or all together.

loss = sum over the terms of  weight · loss(head(what is read), labels)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from zoo.errors import InputError, TaskError
from zoo.layers import Padding
from zoo.layers.trace import chosen
from zoo.models.base.model import Model
from zoo.models.base.outputs import TaskOutput
from zoo.registry.inputs import INPUTS, LABELS
from zoo.registry.tasks import TASKS, TaskSpec
from zoo.registry.terms import TERMS, PretrainingTerm
from zoo.tasks.base import TaskModel, by_path
from zoo.tasks.losses import IGNORED, LOSSES, OPTION_CHECKS, label_tensor


def terms_of(task: str, model_class: Any) -> tuple[PretrainingTerm, ...]:
    """The terms that a task trains: the one of its name, or all that the family declares."""
    declared: tuple[PretrainingTerm, ...] = model_class.pretraining
    if task == "pretraining":
        return declared
    name, offers = TASKS[task].term, set(model_class.offers)
    found = next(term for term in (*declared, *TERMS) if term.name == name and offers.issuperset(term.reads))
    return (replace(found, optional=False, only_where=None),)  # alone, every row given counts


class Objective(TaskModel):
    """One term or several over one pass. A single term's labels may be called ``labels``, and its
    scores are ``logits``.

    What a term writes to says `PretrainingTerm.output`: ``prediction_logits`` (batch, length, vocabulary),
    ``seq_relationship_logits`` and ``sop_logits`` (batch, 2), ``region_logits`` (batch, regions,
    target), else ``scores[name]``; zeros at padding. A term whose labels are left out has no loss;
    labels at padded positions, and those that are -100, do not count.
    """

    def __init__(self, model: Model, heads: Mapping[str, nn.Module], options: Mapping[str, Any], terms: Any) -> None:
        super().__init__(model, heads, options)
        self.terms: tuple[PretrainingTerm, ...] = tuple(terms)
        self.alone = len(self.terms) == 1
        own = {name for term in self.terms for name in term.arguments} | ({"labels"} if self.alone else set())
        self.kept = frozenset(own - set(self.names))
        self.foreign = frozenset(LABELS) - own - set(self.names)

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        terms = [term for term in terms_of(task, type(model)) if _wanted(term, model.config)]
        for term in terms:
            if term.loss in OPTION_CHECKS:
                OPTION_CHECKS[term.loss](options)
        heads = {term.head_name: model.heads[term.head_name](model.config) for term in terms if term.head_name}
        return cls(model, heads, options, terms)

    @classmethod
    def pooled(cls, spec: TaskSpec, model_class: Any, config: Any) -> bool:
        reading = [t for t in terms_of(spec.name, model_class) if any(model_class.offers[r].pooled for r in t.reads)]
        return any(not term.optional for term in reading) or (bool(reading) and config.pooler)

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return tuple(term.head_name for term in terms_of(spec.name, model_class) if term.head_name)

    @classmethod
    def spec_of(cls, spec: TaskSpec, model_class: Any) -> TaskSpec:
        own = {name: value for term in terms_of(spec.name, model_class) for name, value in term.options.items()}
        return replace(spec, options={**spec.options, **own})

    def forward(self, *inputs: Tensor, **named: Any) -> TaskOutput:
        """The model's inputs, and each term's labels with what its head and its loss read besides
        (`zoo.registry.terms`).
        """
        given = self.given(inputs, named)
        for name in self.foreign.intersection(given):
            if given.pop(name) is not None:
                lacks = ", ".join(t.head_name for t in TERMS if name in t.arguments)
                terms = ", ".join(term.name for term in self.terms)
                raise InputError(f"{name} was given, but this model has no {lacks} head; it trains {terms}")
        below = {name: value for name, value in given.items() if name not in self.kept}
        wanted = below.get("output_hidden_states", False)
        if deeper := any(term.layer and not self._last(term) for term in self.terms):
            below["output_hidden_states"] = True
        encoded = self.model(**below)
        losses: dict[str, Tensor] = {}
        fields: dict[str, Tensor] = {}
        scores: dict[str, Tensor] = {}
        several: dict[tuple[str, tuple[str, ...]], tuple[Any, Padding | None]] = {}
        for term in self.terms:
            labels = self._labels(term, given)
            if term.scorer and labels is None:
                continue
            missing = [name for name in term.takes if self._taken(name, given) is None]
            if missing:
                if labels is not None:
                    meaning = (LABELS.get(missing[0]) or INPUTS[missing[0]]).meaning
                    raise InputError(f"{term.labels} were given without {missing[0]}: {meaning}")
                continue
            key = term.head_name, term.reads
            if not term.part:
                found, padding = self.score(term, given, encoded)
            else:  # a head that gives several scores runs once
                if key not in several:
                    several[key] = self.score(term, given, encoded)
                found, padding = several[key][0][term.part], several[key][1]
            if isinstance(found, Mapping):  # by source
                scores |= {name: part.scores for name, part in found.items()}
            elif term.output:
                fields[term.output] = found
            elif not self.alone:
                scores[term.name] = found
            if self.alone and isinstance(found, Tensor):
                fields["logits"] = found
            if labels is not None or not term.labels:
                losses |= self.loss(term, found, labels, padding, given, encoded)
        if deeper and wanted is not True:
            states = chosen(encoded.hidden_states, wanted, "output_hidden_states") if wanted else None
            encoded = replace(encoded, hidden_states=states)
        total: Any = sum(losses.values()) if losses else None  # eq: sum
        return TaskOutput(total, losses=losses, encoded=encoded, scores=scores, **fields)

    def predict(self, hidden: Tensor) -> Tensor:
        """Word scores of states (batch, length, hidden), all of them real."""
        term = next((term for term in self.terms if term.output == "prediction_logits"), None)
        if term is None:
            raise TaskError(f"{self.task!r} predicts no words")
        return self.heads[term.head_name](hidden, *(self._taken(name, {}) for name in term.takes))  # type: ignore[no-any-return]

    def loss(
        self,
        term: PretrainingTerm,
        scores: Any,
        labels: Any,
        padding: Padding | None,
        given: Mapping[str, Any],
        encoded: Any,
    ) -> dict[str, Tensor]:
        """The term's loss by its name; a model with several sources gives one for each."""
        real = None if padding is None else padding.real
        part = self.model.offers[term.reads[0]].part
        length = None if part is None else part(encoded)
        if length is not None and labels is not None:
            labels = label_tensor(labels, str(term.labels))
            if labels.dim() != 2 or labels.shape[1] not in (length, scores.shape[1]):
                wanted = f"(batch, positions) of {length} or {scores.shape[1]} positions"
                raise TaskError(f"{term.labels} must be {wanted}, got {tuple(labels.shape)}")
            scores, real = scores[:, : labels.shape[1]], None if real is None else real[:, : labels.shape[1]]
        if term.only_where is not None and labels is not None:
            name, value = term.only_where
            if given.get(name) is None:
                raise InputError(f"the loss {term.name!r} counts where {name} is {value}; give {name} too")
            others = label_tensor(given[name], name).flatten() != value
            labels = labels.masked_fill(others.unflatten(0, (-1, *[1] * (labels.dim() - 1))), IGNORED)
        beside = {name: self._beside(name, given) for name in term.loss_takes}
        name = term.labels if given.get(term.labels) is not None else "labels"
        found = _loss(term.loss)(name, scores, labels, real, beside)
        weight = self.options[term.weight] if isinstance(term.weight, str) else term.weight
        by_name = found if isinstance(found, Mapping) else {term.name: found}
        return {name: loss if weight == 1 else weight * loss for name, loss in by_name.items()}  # eq: sum

    def _labels(self, term: PretrainingTerm, given: Mapping[str, Any]) -> Any:
        own, name = given.get(term.labels), term.labels
        if own is None and self.alone:
            own, name = given.get("labels"), "labels"
        return own if own is None or isinstance(own, Mapping) else label_tensor(own, name)

    def _beside(self, name: str, given: Mapping[str, Any]) -> Any:
        """What a loss reads besides its labels: of the call, of the options or of the config."""
        if given.get(name) is not None:
            return given[name]
        return self.options.get(name, getattr(self.config, name, None))


def _wanted(term: PretrainingTerm, config: Any) -> bool:
    """Whether a model of this config trains the term."""
    if term.optional and not getattr(config, "pooler", True):
        return False
    return all(getattr(config, name) for name in term.needs)


def _loss(name: str) -> Any:
    """A loss by its key, or by ``"module:function"``."""
    return by_path(name) if ":" in name else LOSSES[name]
