"""Drawing small models and batches of every registered family, for the property tests."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import zoo
from zoo.registry import variants as registry
from zoo.registry.inputs import INPUTS
from zoo.registry.listing import offers_of
from zoo.registry.tasks import TASKS, fitting

TEXT_TASKS = (
    "masked-lm",
    "causal-lm",
    "pretraining",
    "next-sentence",
    "sentence-order",
    "sequence-classification",
    "token-classification",
    "replaced-token-detection",
    "question-answering",
    "multiple-choice",
    "sentence-embedding",
    "entity-typing",
)
MASKS = ("none", "full", "right", "left", "holes")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu", "sigmoid", "identity")


FULL = bool(os.environ.get("ZOO_TEST_FULL"))  # every cell of the matrix, and as many examples as properties name


def examples(many: int) -> int:
    """How many examples a property draws for each family: ``many`` in a full run, else a third. All families together
    draw hundreds, and what breaks a shared part shows in one of them.
    """
    return many if FULL else max(3, many // 3)


# -- families ----------------------------------------------------------------------------------------------------------


def registered() -> list[str]:
    """Every registered family, or those that the environment names
    (``ZOO_TEST_FAMILIES=bert,albert``).
    """
    chosen = os.environ.get("ZOO_TEST_FAMILIES", "")
    return sorted(name for name in registry.families() if not chosen or name in chosen.split(","))


def families() -> list[str]:
    """The registered families that these tests know, see `tests.families`; a test holds them to be
    all.
    """
    return [name for name in registered() if importlib.util.find_spec(_module(name))]


def _module(name: str) -> str:
    return f"tests.families.{name.replace('-', '_')}"


def family(name: str) -> ModuleType:
    """The tests' module of a family."""
    return importlib.import_module(_module(name))


def model_class(name: str) -> Any:
    return registry.families()[name][0].model_class()


def with_oracle() -> list[str]:
    """The families that another library can be asked about."""
    return [name for name in families() if hasattr(family(name), "oracle")]


def tasks_of(name: str) -> list[str]:
    """The tasks that fit a family."""
    return fitting(offers_of(registry.families()[name][0]))


def family_tasks() -> list[tuple[str, str]]:
    """Every family with every task of its whose labels the tests know."""
    return [
        (name, task)
        for name in families()
        for task in getattr(family(name), "TASKS", tasks_of(name))
        if hasattr(family(name), "labels") or (task in TEXT_TASKS and not several_streams(name))
    ]


def several_streams(name: str) -> bool:
    """Whether a family reads more than one text, so that its module says where its states are."""
    return hasattr(family(name), "states")


def build(
    name: str,
    config: Any,
    task: str | None = None,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Any:
    """A family's model of this config through the public call, in eval mode, every parameter
    random.
    """
    options = {
        key: value for key, value in options.items() if key not in config.field_names()
    }  # K-BERT's config has a `pooling` too
    made = zoo.create(registry.families()[name][0].name, task=task, dtype=dtype, **config.to_dict(), **options)
    return randomised(made, seed)


@torch.no_grad()
def randomised(model: nn.Module, seed: int = 0, scale: float = 0.4) -> nn.Module:
    """Every parameter random, norms and biases too, so that a term that is missing or doubled
    shows. -> the model, in eval mode.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        center = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale + center)
    return model.eval()


# -- batches -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """A model's inputs. ``streams``: which of them (batch, length, ...) run along with which mask
    (batch, length), as the table of inputs says.
    """

    inputs: Mapping[str, Tensor]

    @property
    def streams(self) -> dict[str, tuple[str, ...]]:
        axes = {row.masks: name for name, row in INPUTS.items() if row.masks}
        found = {mask: tuple(self._along(axis)) for axis, mask in axes.items()}
        return {mask: names for mask, names in found.items() if names}

    def _along(self, axis: str) -> list[str]:
        """The inputs along an axis; of those that may have fewer axes, where they have it."""
        return [name for name in INPUTS.along(axis) if name in self.inputs and self.inputs[name].dim() > 1]

    def along(self, mask: str) -> list[str]:
        return list(self.streams[mask])

    def real(self, mask: str = "attention_mask") -> Tensor:
        """(batch, length) bool, True = a real token."""
        first = self.inputs[self.along(mask)[0]]
        given = self.inputs.get(mask)
        return torch.ones(first.shape[:2], dtype=torch.bool) if given is None else given.bool()

    @property
    def rows(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def masked(self) -> Batch:
        """The same with every mask written out."""
        return replace(self, inputs={**self.inputs, **{mask: self.real(mask) for mask in self.streams}})

    def with_(self, **inputs: Tensor) -> Batch:
        return replace(self, inputs={**self.inputs, **inputs})

    def refilled(self, seed: int) -> Batch:
        """Padding filled with other things: values that stand at real places elsewhere."""
        generator = torch.Generator().manual_seed(seed)
        changed = {}
        for mask in self.streams:
            real = self.real(mask)
            if not real.any():
                continue
            for name in self.along(mask):
                values = self.inputs[name][real]
                chosen = values[torch.randint(len(values), (int((~real).sum()),), generator=generator)]
                changed[name] = self.inputs[name].masked_scatter(_like(~real, self.inputs[name]), chosen)
        return self.with_(**changed)

    def lengthened(self, mask: str, columns: list[int]) -> Batch:
        """Padding put before each of these columns (the length itself = at the end), filled with
        row 0's first value.
        """
        given = self.masked
        where = sorted(columns)
        changed = {}
        for name in [mask, *given.along(mask)]:
            x = given.inputs[name]
            filler = (
                x[:1, :1].expand(x.shape[0], 1, *x.shape[2:])
                if name != mask
                else torch.zeros(x.shape[0], 1, dtype=x.dtype)
            )
            pieces, last = [], 0
            for column in where:
                pieces += [x[:, last:column], filler]
                last = column
            changed[name] = torch.cat([*pieces, x[:, last:]], 1)
        return given.with_(**changed)

    def reordered(self, order: list[int]) -> Batch:
        return replace(self, inputs={name: x[torch.tensor(order)] for name, x in self.inputs.items()})

    def __repr__(self) -> str:
        shapes = {name: tuple(x.shape) for name, x in self.inputs.items()}
        masks = {mask: self.real(mask).int().tolist() for mask in self.streams}
        return f"Batch({shapes}, real={masks})"


def _like(mask: Tensor, x: Tensor) -> Tensor:
    return mask.reshape(mask.shape + (1,) * (x.dim() - 2)).expand(x.shape)


@st.composite
def attention_masks(
    draw: st.DrawFn, batch: int, length: int, kinds: tuple[str, ...] = MASKS, least: int = 1
) -> Tensor | None:
    """(batch, length) int or bool, or None: right or left padding, holes, at least ``least`` real
    tokens a row.
    """
    kind = draw(st.sampled_from(kinds))
    if kind == "none":
        return None
    rows = []
    for _ in range(batch):
        count = length if kind == "full" else draw(st.integers(min(least, length), length))
        if kind == "holes":
            places = draw(st.permutations(range(length)))[:count]
            rows.append([column in places for column in range(length)])
        else:
            row = [True] * count + [False] * (length - count)
            rows.append(row[::-1] if kind == "left" else row)
    return torch.tensor(rows).to(draw(st.sampled_from([torch.int64, torch.bool, torch.int32])))


@st.composite
def text_batches(
    draw: st.DrawFn, config: Any, *, kinds: tuple[str, ...] = MASKS, least: int = 1, embeds: bool = True
) -> Batch:
    """A batch of texts for a model with the usual inputs; ids never are the padding id."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, min(7, config.max_positions)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    width = getattr(config, "embedding_size", config.hidden_size)
    inputs: dict[str, Tensor] = {}
    if embeds and draw(st.integers(0, 4)) == 0:
        inputs["inputs_embeds"] = torch.randn(batch, length, width, generator=generator, dtype=torch.float64)
    else:
        inputs["input_ids"] = torch.randint(1, config.vocab_size, (batch, length), generator=generator)
    mask = draw(attention_masks(batch, length, kinds, least))
    if mask is not None:
        inputs["attention_mask"] = mask
    if draw(st.booleans()):
        inputs["token_type_ids"] = torch.randint(config.num_segments, (batch, length), generator=generator)
    if draw(st.booleans()):
        inputs["position_ids"] = torch.randint(config.max_positions, (batch, length), generator=generator)
    return Batch(inputs)


def encoder_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Fields that BERT-like configs share."""
    num_heads, head_size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return {
        "vocab_size": draw(st.integers(5, 20)),
        "hidden_size": num_heads * head_size,
        "num_layers": draw(st.integers(1, 3)),
        "num_heads": num_heads,
        "intermediate_size": draw(st.integers(1, 12)),
        "max_positions": draw(st.integers(8, 12)),
        "num_segments": draw(st.integers(1, 3)),
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "norm_eps": draw(st.sampled_from([1e-12, 1e-5, 1e-2])),
        "tie_word_embeddings": draw(st.booleans()),
        "pooler": draw(st.booleans()),
        "dropout": 0.3,
        "attention_dropout": 0.3,
        "classifier_dropout": draw(st.sampled_from([None, 0.2])),
    }


@st.composite
def configs(draw: st.DrawFn, name: str) -> Any:
    """A tiny config of a family."""
    return family(name).tiny_config(draw)


@st.composite
def batches(draw: st.DrawFn, name: str, config: Any, **options: Any) -> Batch:
    """A batch for a model of a family."""
    return family(name).inputs(draw, config, **options)


def states(name: str, output: Any) -> dict[str, Tensor]:
    """A model's last states by the mask they run along with; where there is one stream, all its
    hidden states too.
    """
    if several_streams(name):
        found: dict[str, Tensor] = family(name).states(output)
        return found
    hidden = {f"hidden_states[{depth}]": x for depth, x in enumerate(output.hidden_states or ())}
    return {"last_hidden_state": output.last_hidden_state, **hidden}


def pooled(output: Any) -> Tensor | None:
    """The pooled vector, where there is one."""
    found: Tensor | None = getattr(output, "pooler_output", None)
    return found


def mask_of(name: str, state: str) -> str:
    """The mask that one of `states` runs along with."""
    return state if several_streams(name) else "attention_mask"


SMALL = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 11,
    "max_positions": 10,
    "embedding_size": 5,
    "bottleneck_size": 6,
    "num_groups": 2,
    "num_segments": 2,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "classifier_dropout": 0.0,
}


READ = {"vocab_size": 19, "max_positions": 10, "num_channels": 3}  # what a config needs to read the small batch


def small_config(name: str, **fields: Any) -> Any:
    """A fixed small config of a family, without dropout; a family's ``SMALL`` adds to the sizes
    here, and its ``small_fields`` puts them where its config has them.
    """
    cls = model_class(name).Config
    wanted = {**SMALL, **getattr(family(name), "SMALL", {}), **fields}
    wanted = getattr(family(name), "small_fields", dict)(wanted)
    return cls(**{key: value for key, value in wanted.items() if key in cls.field_names()})


def small_batch(name: str) -> Batch:
    """Ragged texts for it: right padding, a hole, full, left padding; a family's own
    ``small_batch()`` comes first.
    """
    own = getattr(family(name), "small_batch", None)
    if own is not None:
        return own()
    ids = torch.randint(1, 19, (4, 6), generator=torch.Generator().manual_seed(4))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor(
            [[1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]]
        ),
    }
    if "token_type_ids" in registry.families()[name][0].inputs:
        inputs["token_type_ids"] = torch.arange(24).reshape(4, 6) % 5 % 2
    if "language_ids" in registry.families()[name][0].inputs:
        inputs["language_ids"] = torch.arange(24).reshape(4, 6) % 2
    return Batch(inputs)


# -- tasks -------------------------------------------------------------------------------------------------------------


@st.composite
def task_options(draw: st.DrawFn, task: str) -> dict[str, Any]:
    """Options of a task."""
    if task == "sentence-embedding":
        return {"pooling": draw(st.sampled_from(["mean", "max", "cls"])), "normalize": draw(st.booleans())}
    return {"num_labels": draw(st.integers(1, 4))} if "num_labels" in TASKS[task].options else {}


COMPANIONS = {
    "pair_labels": "pairs",
    "entity_labels": "entity_candidates",
}  # labels that mean nothing without another input


def labels_for(task: str, model: Any, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """Labels that fit a task, some of them left out, at least one of each kind given."""
    own = next(
        (
            family(name)
            for name in families()
            if model_class(name) is type(model.model) and hasattr(family(name), "labels")
        ),
        None,
    )
    if own is not None:
        return own.labels(task, model, batch, seed)
    generator = torch.Generator().manual_seed(seed)
    real = batch.real()
    rows, length = real.shape

    def per_token(classes: int) -> Tensor:
        labels = torch.randint(classes, (rows, length), generator=generator)
        keep = (torch.rand(rows, length, generator=generator) < 0.6) & real
        keep[tuple(real.nonzero()[0])] = True
        return labels.masked_fill(~keep, -100)

    def per_row(classes: int) -> Tensor:
        return torch.randint(classes, (rows,), generator=generator)

    if task in ("masked-lm", "pretraining"):
        labels = {"labels": per_token(model.config.vocab_size)}
        if task == "pretraining":
            labels |= {
                f"{head}_label": per_row(2) for head in ("next_sentence", "sentence_order") if head in model.heads
            }
            if "span_boundary" in model.heads:  # from the first real token to the last
                ends = [torch.nonzero(row).flatten() for row in real]
                labels["pairs"] = torch.tensor([[[int(places[0]), int(places[-1])]] for places in ends])
                shape = (rows, 1, model.config.max_span_targets)
                labels["pair_labels"] = torch.randint(model.config.vocab_size, shape, generator=generator)
            if "masked_entity" in model.heads:
                labels["entity_candidates"] = torch.randn(
                    5, model.config.entity_size, generator=generator, dtype=torch.float64
                )
                labels["entity_labels"] = per_token(5)
        return labels
    if task == "causal-lm":  # transformers predicts what follows padding too: such labels are left out
        labels = per_token(model.config.vocab_size)
        labels[:, 1:] = labels[:, 1:].masked_fill(~real[:, :-1], -100)
        return {"labels": labels}
    if task == "entity-typing":
        return {"labels": torch.randint(2, (rows, model.options["num_labels"]), generator=generator).double()}
    if task == "replaced-token-detection":
        return {"labels": torch.randint(2, (rows, length), generator=generator)}
    if task in ("next-sentence", "sentence-order"):
        return {"labels": per_row(2)}
    if task == "token-classification":
        return {"labels": per_token(model.options["num_labels"])}
    if task == "question-answering":
        place = [int(torch.nonzero(row)[torch.randint(int(row.sum()), (1,), generator=generator)]) for row in real]
        ends = torch.tensor(place)
        return {"start_positions": torch.tensor(place[:1] + [length + 3] * (rows - 1)), "end_positions": ends}
    if task == "sequence-classification":
        classes = model.options["num_labels"]
        if classes == 1:
            return {"labels": torch.randn(rows, generator=generator, dtype=torch.float64)}
        if classes == 4:
            return {"labels": torch.randint(2, (rows, classes), generator=generator).double()}
        return {"labels": per_row(classes)}
    if task == "multiple-choice":
        return {"labels": torch.randint(rows // questions(batch), (questions(batch),), generator=generator)}
    return {}


def questions(batch: Batch) -> int:
    """How many questions of several choices a batch makes."""
    return 2 if batch.rows % 2 == 0 else 1


def for_task(task: str, batch: Batch) -> dict[str, Tensor]:
    """A batch as a task takes it: for multiple choice its rows are the choices of one or two
    questions.
    """
    if task != "multiple-choice":
        return dict(batch.inputs)
    return {name: x.unflatten(0, (questions(batch), -1)) for name, x in batch.inputs.items()}


def results(output: Any) -> dict[str, Tensor]:
    """The tensors that a task model returns, without what the model below it returned."""
    return {name: value for name, value in output.present() if isinstance(value, Tensor)}


def relative(mine: Tensor, reference: Tensor) -> float:
    """max|difference| / max|reference|."""
    assert mine.shape == reference.shape, f"{tuple(mine.shape)} against {tuple(reference.shape)}"
    assert mine.dtype == reference.dtype, f"{mine.dtype} against {reference.dtype}"
    if not reference.numel():
        return 0.0
    assert mine.isfinite().all(), "infinite or NaN"
    largest = float(reference.abs().max())
    return float((mine - reference).abs().max()) / (largest or 1.0)
