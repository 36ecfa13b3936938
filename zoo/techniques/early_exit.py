"""Early exit: an off-ramp after every layer, and rows that leave the batch as soon as one of them
is sure (DeeBERT; Xin et al., 2020), or has said the same thing several times in a row (PABEE; Zhou
et al., 2020).

    off-ramp i:   p_i = softmax(W_i tanh(P_i h_i + b) + c)        h_i the first token's state after layer i
    threshold:    leave where H(p_i) = -Σ p ln p < t
    patience:     leave where argmax p_i has been the same for so many layers after the first that said it

The rows that left are not computed any further: the batch that stays is smaller, packed or not.

    zoo.apply(model, zoo.EarlyExit(num_labels=3))      # poolers start as copies of the model's own
    early_exit.ramp_loss(model, batch).backward()      # second stage: only early_exit.ramp_parameters(model) learn
    early_exit.classify(model, batch, threshold=0.1)   # -> logits, and the layer after which each row left
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import InputError, TechniqueError
from zoo.layers.extend import Extension, extend
from zoo.layers.masks import Mask
from zoo.layers.padding import Packed
from zoo.layers.pooler import FirstTokenPooler
from zoo.layers.stack import Stack
from zoo.layers.trace import Trace
from zoo.models.base.config import check_positive
from zoo.models.base.model import Model, bare_model
from zoo.tasks.losses import classification_loss
from zoo.techniques.base import Technique, fresh, parts_of


class OffRamp(nn.Module):
    """A pooler and a classifier of its own behind one layer."""

    def __init__(self, hidden_size: int, num_labels: int, dropout: float) -> None:
        super().__init__()
        self.pooler = FirstTokenPooler(hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, first: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, hidden) -> logits (rows, labels) and the pooled vector (rows, hidden)."""
        pooled = self.pooler.transform(first)  # eq: off-ramp
        return self.classifier(self.dropout(pooled)), pooled  # eq: off-ramp


class ExitRule:
    """What the off-ramps say in one forward pass, by layer, and who leaves; subclasses say who."""

    def __init__(self) -> None:
        self.logits: list[Tensor] = []  # by layer, of the rows that were still there
        self.pooled: list[Tensor] = []
        self.rows: list[Tensor] = []  # which rows these were
        self.left: dict[int, tuple[int, Tensor]] = {}  # by row: after which layer, with which logits

    def leaves(self, layer: int, logits: Tensor, rows: Tensor) -> Tensor:
        """(rows,) bool: who is done after this layer."""
        return torch.zeros(len(rows), dtype=torch.bool, device=logits.device)


class EntropyBelow(ExitRule):
    """Leave where the entropy is below the layer's threshold."""

    def __init__(self, thresholds: float | Sequence[float]) -> None:
        super().__init__()
        self.thresholds = thresholds

    def leaves(self, layer: int, logits: Tensor, rows: Tensor) -> Tensor:
        limit = self.thresholds if isinstance(self.thresholds, int | float) else self.thresholds[layer]
        return entropy(logits) < limit  # eq: entropy


class Agreement(ExitRule):
    """Leave where ``patience`` layers in a row have agreed with the one before them."""

    def __init__(self, patience: int) -> None:
        super().__init__()
        self.patience = patience
        self.said: Tensor | None = None
        self.times: Tensor | None = None

    def leaves(self, layer: int, logits: Tensor, rows: Tensor) -> Tensor:
        now = logits.argmax(1)
        if self.said is None or self.times is None:
            self.said, self.times = now.clone(), torch.zeros_like(now)
            return self.times >= self.patience
        same = self.said[rows] == now  # eq: patience
        self.times[rows] = torch.where(same, self.times[rows] + 1, 0)  # eq: patience
        self.said[rows] = now
        return self.times[rows] >= self.patience  # eq: patience


def entropy(logits: Tensor) -> Tensor:  # eq: entropy
    """-Σ p ln p of the softmax in nats, (rows, labels) -> (rows,); 0 where a probability is 1."""
    p = logits.softmax(-1)
    return -torch.special.xlogy(p, p).sum(-1)


class WithExits(Extension):
    """A stack with an off-ramp after each of its layers. Without a run in progress it is the stack
    as it was.
    """

    plan: tuple[int, ...]
    blocks: nn.ModuleList
    exits: nn.ModuleList
    run: ExitRule | None

    def forward(self, x: Tensor, mask: Mask, bias: Tensor | None = None, trace: Trace | None = None) -> Tensor:
        if self.run is None:
            out: Tensor = super().forward(x, mask, bias, trace)
            return out
        if trace is not None and (trace.hidden_states is not None or trace.attentions is not None):
            raise InputError(
                "rows that leave early have no later states; ask for hidden states and attentions without an exit"
            )
        rows = torch.arange(x.shape[0] if mask.query_rows is None else len(mask.query_rows.order), device=x.device)
        if mask.query_rows is not None:
            rows = torch.tensor(mask.query_rows.order, device=x.device)  # row numbers in the order of the packed rows
        places = torch.arange(x.shape[0], device=x.device)  # where each (packed) row of x belongs
        result = torch.zeros_like(x)
        for layer, index in enumerate(self.plan):
            x = self.blocks[index](x, mask, bias, trace)
            logits, pooled = self.exits[layer](firsts(x, mask))
            self.run.logits.append(logits)
            self.run.pooled.append(pooled)
            self.run.rows.append(rows)
            gone = self.run.leaves(layer, logits, rows)
            if not bool(gone.any()):
                continue
            for row, said in zip(rows[gone].tolist(), logits[gone], strict=True):
                self.run.left[row] = (layer + 1, said)
            leaving = gone if mask.query_rows is None else _by_token(gone, mask.query_rows)
            result = result.index_copy(0, places[leaving], x[leaving])
            x, places, rows = x[~leaving], places[~leaving], rows[~gone]
            if not len(rows):
                return result
            mask, bias = _without(mask, ~gone, ~leaving), bias if bias is None or len(bias) == 1 else bias[~gone]
        return result.index_copy(0, places, x)


def firsts(x: Tensor, mask: Mask) -> Tensor:
    """The first real token of each row, in the order of ``x``, packed or not."""
    if mask.query_rows is not None:
        lengths = torch.tensor(mask.query_rows.lengths, device=x.device)
        if not bool((lengths > 0).all()):
            raise InputError("a row without a real token has nothing for an off-ramp to read; leave it out")
        return x[lengths.cumsum(0) - lengths]
    if mask.keys is None:
        return x[:, 0]
    where = mask.keys.int().argmax(1)
    return x.gather(1, where[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)


def _by_token(rows: Tensor, packed: Packed) -> Tensor:
    return rows.repeat_interleave(torch.tensor(packed.lengths, device=rows.device))


def _without(mask: Mask, stay: Tensor, tokens: Tensor) -> Mask:
    """The mask of the rows that stay."""
    if mask.query_rows is None:
        cut = {
            name: value[stay]
            for name in ("keys", "dense")
            if (value := getattr(mask, name)) is not None and len(value) == len(stay)
        }
        return replace(mask, **cut)
    old, keep = mask.query_rows, stay.tolist()
    new = Packed(
        old.index[tokens],
        tuple(row for row, kept in zip(old.order, keep, strict=True) if kept),
        tuple(length for length, kept in zip(old.lengths, keep, strict=True) if kept),
        old.grid,
        None if old.positions is None else old.positions[tokens],
    )
    return replace(mask, query_rows=new, key_rows=new)


@dataclass(frozen=True, kw_only=True)
class EarlyExit(Technique):
    """An off-ramp (a pooler and a classifier of ``num_labels``) after every layer of a stack. The
    model itself gives what it gave.
    """

    num_labels: int = 2  # of each classifier
    stack: str = "encoder"  # path of the stack
    dropout: float = 0.1  # ahead of each classifier

    def check(self) -> None:
        check_positive(self, "num_labels")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        part: Any = dict(model.named_modules()).get(self.stack)
        if not isinstance(part, Stack) or isinstance(part, WithExits):
            kind = "nothing there" if part is None else f"a {type(part).__name__}"
            raise TechniqueError(
                f"EarlyExit needs a stack of layers without exits at {self.stack!r}; {type(model).__name__} has {kind}"
            )
        like = next(part.parameters())
        ramps = [OffRamp(model.hidden_size, self.num_labels, self.dropout) for _ in part.plan]
        extend(part, WithExits)
        stack: Any = part
        stack.run = None
        stack.exits = nn.ModuleList(
            fresh(ramp, like, model.config.initializer_range, generator).train(part.training) for ramp in ramps
        )
        return [f"{len(ramps)} off-ramps behind {self.stack}"]

    def settle(self, model: Model, generator: torch.Generator | None) -> None:
        copy_pooler(model)


def exits_of(model: nn.Module) -> Any:
    """The stack with exits."""
    for stack in parts_of(model, WithExits).values():
        return stack
    raise TechniqueError(f"{type(bare_model(model)).__name__} has no off-ramps; apply zoo.EarlyExit first")


@torch.no_grad()
def copy_pooler(model: nn.Module) -> bool:
    """Let every off-ramp's pooler start as the model's own; whether it has one of that kind."""
    own = getattr(bare_model(model), "pooler", None)
    if not isinstance(own, FirstTokenPooler):
        return False
    for ramp in exits_of(model).exits:
        ramp.pooler.load_state_dict(own.state_dict())
    return True


def ramp_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What learns in the second stage; the last layer's off-ramp is among it, but gets no
    gradient.
    """
    return list(exits_of(model).exits.parameters())


@contextmanager
def _running(model: nn.Module, run: ExitRule) -> Iterator[ExitRule]:
    stack = exits_of(model)
    stack.run = run
    try:
        yield run
    finally:
        stack.run = None


@dataclass(frozen=True)
class Ramps:
    """Every off-ramp's ``logits`` (rows, labels) and ``pooled`` (rows, hidden), by layer, and the
    model's own ``output``.
    """

    output: Any
    logits: tuple[Tensor, ...]
    pooled: tuple[Tensor, ...]


def all_ramps(model: nn.Module, batch: Mapping[str, Any]) -> Ramps:
    """Run the whole stack and every off-ramp."""
    with _running(model, ExitRule()) as run:
        output = model(**batch)
    back = [rows.argsort() for rows in run.rows]
    return Ramps(
        output,
        tuple(logits[order] for logits, order in zip(run.logits, back, strict=True)),
        tuple(pooled[order] for pooled, order in zip(run.pooled, back, strict=True)),
    )


def ramp_loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The second stage's loss: the sum of the off-ramps' losses but the last layer's. ``batch`` has
    labels.
    """
    labels = batch["labels"]
    kind = getattr(model, "options", {}).get("problem_type")
    ramps = all_ramps(model, {name: value for name, value in batch.items() if name != "labels"})
    return torch.stack([classification_loss(logits, labels, kind) for logits in ramps.logits[:-1]]).sum()


@dataclass(frozen=True)
class Exits:
    """``logits`` (rows, labels): the off-ramp's where a row left, else the model's own; ``layers``
    (rows,): how many layers it ran.
    """

    logits: Tensor
    layers: Tensor


@torch.no_grad()
def classify(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    threshold: float | Sequence[float] | None = None,
    patience: int | None = None,
) -> Exits:
    """Classify a batch and let rows leave: below an entropy ``threshold`` (one, or one for each
    layer), or after ``patience`` agreements.

    A row that leaves at the last layer has its off-ramp's logits, not the model's. Raises
    InputError unless exactly one rule is given and the model is in eval mode.
    """
    stack = exits_of(model)
    if model.training:
        raise InputError("in training mode nothing leaves early; call model.eval() first")
    if (threshold is None) == (patience is None):
        raise InputError("give either threshold= or patience=")
    if isinstance(threshold, Sequence) and len(threshold) != len(stack.plan):
        raise InputError(f"a threshold for each of the {len(stack.plan)} layers is needed, got {len(threshold)}")
    if patience is not None and patience < 1:
        raise InputError(f"patience={patience} must be at least 1")
    rule: ExitRule = Agreement(patience) if patience is not None else EntropyBelow(threshold)  # type: ignore[arg-type]
    with _running(model, rule) as run:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    layers = torch.full((len(logits),), len(stack.plan))
    for row, (layer, said) in run.left.items():
        layers[row] = layer
        logits[row] = said
    return Exits(logits, layers)
