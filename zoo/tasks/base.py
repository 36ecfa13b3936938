"""A model with heads for a task: parameters under ``model.`` and ``heads.``; in files the model's
names stand bare.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError, unknown
from zoo.layers import Padding
from zoo.layers.embeddings import FactorizedTable, NarrowTable
from zoo.layers.init import initialise
from zoo.maps.layouts import BESIDE
from zoo.maps.rules import unwrapped
from zoo.models.base.companions import Companions
from zoo.models.base.config import LARGEST_NUMBER
from zoo.models.base.model import Model, check_tensors
from zoo.registry.inputs import LABELS
from zoo.registry.tasks import TaskSpec, offered, require_fit, spec_for
from zoo.registry.terms import PretrainingTerm


class TaskModel(Companions, nn.Module):
    """Base of the task models. ``options`` are the task's own (num_labels, pooling, ...), saved
    beside the config.
    """

    kept: frozenset[str] = frozenset()  # arguments of the task's own, which the model does not read
    reads: ClassVar[str] = "pooled"  # what a head of the task's own is as wide as, see `Model.widths`
    several: tuple[str, int] | None = None
    """The axis of the inputs that a row has several of, in one more axis behind the batch's, and how
    many an example has: ("length", 4) for choices. None where a row is one text or picture."""

    def __init__(self, model: Model, heads: Mapping[str, nn.Module], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.heads = nn.ModuleDict(heads)
        self.options = dict(options)
        rate = getattr(self.config, "classifier_dropout", None)
        self.dropout = nn.Dropout(getattr(self.config, "dropout", 0.0) if rate is None else rate)
        self.task = ""
        self.names = tuple(inspect.signature(model.forward).parameters)  # of what may come by position

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        check_tensors(self, inputs, named)
        return super().__call__(*inputs, **named)

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        """Assemble around a model; by default with a head of the task's own name for its labels."""
        name = task.replace("-", "_")
        return cls(model, {name: cls.own_head(model, name, options.get("num_labels", 1), options)}, options)

    @classmethod
    def own_head(
        cls, model: Model, name: str, num_labels: int, options: Mapping[str, Any], times: int = 1
    ) -> nn.Module:
        """The head called ``name``: as the family builds it, else a Linear over what the task reads.
        ``times``: vectors joined.
        """
        own = model.task_heads.get(name)
        if own is not None:
            return own(model.config, num_labels)
        return nn.Linear(times * model.widths(model.config)[cls.reads], num_labels)

    @classmethod
    def pooled(cls, spec: TaskSpec, model_class: Any, config: Any) -> bool:
        """Whether the task needs the model's pooler."""
        if spec.name.replace("-", "_") in model_class.reads_first:
            return False
        return any(model_class.offers[what].pooled for what in spec.reads & set(model_class.offers))

    @classmethod
    def spec_of(cls, spec: TaskSpec, model_class: Any) -> TaskSpec:
        """The spec as it is for a model class, with the options that its family adds."""
        return spec

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        """The heads whose tensors the task needs from a file: the family's that it reads, else the
        one of its own name.
        """
        family = tuple(head for head in spec.heads if head in model_class.heads)
        return family or (spec.name.replace("-", "_"),)

    @classmethod
    def options_from(
        cls, sizes: Mapping[str, tuple[int, ...]], spec: TaskSpec, config: Any, model_class: Any
    ) -> dict[str, Any]:
        """The options that stored tensors show, by their canonical names and shapes: the number of
        labels.
        """
        if "num_labels" not in spec.options:
            return {}
        own = spec.name.replace("-", "_")
        stored = sizes.get(f"heads.{own}.weight") or sizes.get(f"heads.{own}.output.weight")
        return {"num_labels": stored[0]} if stored else {}

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def packing(self) -> bool:
        return self.model.packing

    @property
    def techniques(self) -> tuple[Any, ...]:
        """What was applied to the model, in order."""
        return self.model.techniques

    @property
    def changes(self) -> tuple[Any, ...]:
        """What techniques changed, in order."""
        return tuple(getattr(self.model, "changes", ()))

    @property
    def hidden_size(self) -> int:
        """The width of the model's hidden states."""
        return self.model.hidden_size

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def given(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by name; one that neither the model nor a task takes is refused."""
        for name in named:
            if (
                self.model.arguments
                and name not in self.model.arguments
                and name not in LABELS
                and name not in self.kept
            ):
                raise unknown(f"input of {type(self).__name__}", name, [*sorted(self.model.arguments), *LABELS])
        return dict(zip(self.names, inputs, strict=False)) | dict(named)

    def score(self, term: PretrainingTerm, given: Mapping[str, Any], encoded: Any) -> tuple[Any, Padding | None]:
        """What a term's head makes of what it reads, zeros at padding, and which of it is real."""
        model, taken = self.model, [self._taken(name, given) for name in term.takes]
        states = [model.offers[what].read(encoded) for what in term.reads]
        if term.layer and not self._last(term):
            states = [encoded.hidden_states[getattr(self.config, term.layer) % self.config.num_layers + 1]]
        if term.dropout:
            states = [self._dropped(term.dropout, state) for state in states]
        padded = model.offers[term.reads[0]].padded
        padding = model.padding_of(term.reads[0], given, encoded) if padded else None
        if term.scorer:
            offers = [model.offers[what] for what in term.reads]
            paddings = [
                model.padding_of(what, given, encoded, pack=False) if offer.padded else None
                for what, offer in zip(term.reads, offers, strict=True)
            ]
            return by_path(term.scorer)(states, paddings), None
        if not term.head_name:
            return states[0], padding
        head = self.heads[term.head_name]
        if padding is None or term.grid:
            return head(*states, *taken), padding
        found = head(padding.pack(states[0]), *taken)
        if isinstance(found, Mapping):
            return {name: padding.unpack(part) for name, part in found.items()}, padding
        return padding.unpack(found), padding

    def _last(self, term: PretrainingTerm) -> bool:
        layers = self.config.num_layers
        return bool(getattr(self.config, term.layer) % layers == layers - 1)

    def _taken(self, name: str, given: Mapping[str, Any]) -> Any:
        """What a head reads besides states: of the call, or a table of the model."""
        found = given.get(name)
        if found is None:
            found = getattr(self, name, None)
        return getattr(self.model, name, None) if found is None else found

    def _dropped(self, name: str, x: Tensor) -> Tensor:
        rate = getattr(self, name, None)
        return F.dropout(x, getattr(self.model, name), self.training) if rate is None else rate(x)

    def start(self, seed: int = 0) -> None:
        """Make what trains beside the model, such as a queue of keys, in the part ``beside``; nothing where it is
        there already, or where the task has none.
        """

    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """What is done with the first batches of a run before it trains on them, such as filling a queue."""

    def before_step(self) -> None:
        """What changes beside the model ahead of the passes of an update."""

    def after_step(self, outputs: Sequence[Any]) -> None:
        """What changes beside the model behind the optimizer's step; outputs: the results of the update's passes."""

    def num_parameters(self) -> int:
        """Distinct parameters, counted once however often they are used."""
        return sum(p.numel() for p in self.parameters())

    def sites(self) -> Any:
        """The places of the model below, see `Model.sites`."""
        return self.model.sites()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights for the model and the heads."""
        self.model.init_weights(generator)
        initialise(self.heads, self.config.initializer_range, generator)

    @property
    def token_table(self) -> Tensor:
        """The token embedding that decoders are tied to, (vocabulary, embedding size)."""
        token = self.model.embeddings.token  # type: ignore[union-attr]
        return token.table if isinstance(token, FactorizedTable | NarrowTable) else token.weight  # type: ignore[union-attr, return-value]


def by_path(path: str) -> Any:
    """What ``"module:name"`` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def build_task(task: str, model_class: Any, config: Any, options: Mapping[str, Any], name: str) -> TaskModel:
    """A task model around a fresh model of ``model_class``; parts that the task does not read (the
    pooler) are left out.
    """
    require_fit(task, offers_of_class(model_class), name)
    spec = spec_of_class(task, model_class)
    options = check_options(spec, options)
    built_by = task_class(spec)
    if "pooler" in config.field_names():
        config = config.replace(pooler=built_by.pooled(spec, model_class, config))
    if (field := model_class.label_fields.get(task.replace("-", "_"))) is not None:
        config = config.replace(**{field: options["num_labels"]})
    built = built_by.build(model_class(config), options, task)
    built.task = task
    return built


def task_class(spec: TaskSpec) -> type[TaskModel]:
    """The class that a spec names."""
    found: type[TaskModel] = by_path(spec.class_path)
    return found


def spec_of_class(task: str, model_class: Any) -> TaskSpec:
    """The task's spec as it is for a model class."""
    spec = spec_for(task, offers_of_class(model_class))
    return spec if spec.missing(offers_of_class(model_class)) else task_class(spec).spec_of(spec, model_class)


def heads_of_task(task: str | None, model_class: Any) -> tuple[str, ...]:
    """The heads whose tensors a task needs from a file."""
    if task is None:
        return ()
    require_fit(task, offers_of_class(model_class), model_class.__name__)
    return task_class(spec := spec_of_class(task, model_class)).heads_from(spec, model_class)


def offers_of_class(model_class: Any) -> frozenset[str]:
    """What a model class offers to tasks."""
    return offered(model_class.offers, model_class.heads, [term.name for term in model_class.pretraining])


def check_options(spec: TaskSpec, options: Mapping[str, Any]) -> dict[str, Any]:
    """The task's options over its defaults; an unknown one is refused with the closest. ``labels``
    alone say how many there are.
    """
    for name in options:
        if name not in spec.options:
            raise unknown(f"option of the task {spec.name}", name, spec.options)
    merged = {**spec.options, **options}
    if "num_labels" in merged:
        number = merged["num_labels"]
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= LARGEST_NUMBER:
            raise ConfigError(
                f"num_labels must be an integer of at least 1 and at most {LARGEST_NUMBER}, got {number!r}"
            )
    if (labels := merged.get("labels")) is None:
        return merged
    if not isinstance(labels, list | tuple) or not labels or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"labels must be a list of the labels' names, in the order of their numbers, got {labels!r}")
    if "num_labels" in options and len(labels) != options["num_labels"]:
        raise ConfigError(
            f"labels names {len(labels)} labels, num_labels={options['num_labels']}; give as many names, or leave "
            "labels out"
        )
    return {**merged, "labels": list(labels), "num_labels": len(labels)}


def with_an_axis(model: Model, given: Mapping[str, Any]) -> list[str]:
    """The inputs of a call that have an axis more than the table says, behind the batch's."""
    found = []
    for name, x in given.items():
        row = model.input_table.get(name)
        if row is not None and row.axes and isinstance(x, Tensor):
            plain = len(row.axes)
            if x.dim() == plain + 1 or (x.dim() > plain and x.dim() - 1 in row.dims):
                found.append(name)
    return found


def along(model: Model, given: Mapping[str, Any], what: str, number: int | None = None) -> tuple[dict[str, Any], int]:
    """Fold an axis of choices or pictures into the batch: (batch, choices, ...) -> (batch · choices,
    ...), and the number of choices.

    It is that of the input that has them; a text or a picture that all choices share is repeated.
    ``number``: how many there must be.
    """
    table, wide = model.input_table, with_an_axis(model, given)
    tensors = {n: x for n, x in given.items() if isinstance(x, Tensor) and n in table and table[n].axes}
    count = tensors[wide[0]].shape[1] if wide else 0
    alike = all(tensors[name].shape[1] == count for name in wide)  # no set of them: sizes that are traced have no hash
    if not wide or not alike or (number is not None and count != number):
        shapes = ", ".join(f"{tuple(x.shape)} of {name}" for name, x in tensors.items())
        wanted = f"one number of {what}" if number is None else f"{number} {what}"
        raise InputError(
            f"inputs with {what} must be (batch, {what}, ...), with {wanted}; a text's are (batch, {what}, length) "
            f"tensors, got {shapes}"
        )
    rows = tensors[wide[0]].shape[0]
    folded: dict[str, Any] = {}
    for name, x in tensors.items():
        if name in wide:
            folded[name] = x.flatten(0, 1)
        elif x.shape[0] == rows:  # one row, as position_ids may have, serves all
            folded[name] = x.repeat_interleave(count, 0)
    for name, row in table.items():
        if row.counts and given.get(name) is not None:
            shared = [other not in wide for other in tensors if table.masked_axis(other) == row.counts]
            if shared and all(shared):
                folded[name] = [n for n in given[name] for _ in range(count)]
    return {**given, **folded}, count


def canonical_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under the names they have in files: the model's bare, a task's heads under
    ``heads.``; without what torch.compile and other wrappers of parts put into them, and without what
    trains beside the model.
    """
    prefix = "model." if isinstance(module, TaskModel) else ""
    named = {unwrapped(name).removeprefix(prefix): tensor for name, tensor in module.state_dict().items()}
    return {name: x for name, x in named.items() if not (prefix and name.startswith(BESIDE))}
