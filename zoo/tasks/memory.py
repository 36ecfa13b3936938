"""State that trains beside a model: queues of former keys, momentum encoders, memory banks.

    Queue           the keys of the last batches, MoCo's negatives
    MomentumTwin    a copy of the encoder that follows it slowly: k <- m k + (1 - m) q
    MemoryBank      one vector for each sample of the data set

All of it is buffers: no optimizer sees them, `zoo.training.fit` writes them down with what a killed run
goes on from, and `zoo.save` leaves them out of the model. A task model holds it in its part ``beside``. In a
group of processes every process holds the same: what is written is gathered from all of them first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, InputError
from zoo.registry.inputs import INPUTS
from zoo.tasks.processes import gather_rows, rank, row_counts, world

COUNTS = frozenset(name for name, row in INPUTS.items() if row.dtype == "sequence of ints")
"""Arguments with a number for each row."""


class Queue(nn.Module):
    """The last ``size`` keys, ``keys`` (size, width), the oldest overwritten first; ``pointer`` (1,) is the
    row to write next. MoCo's files hold the keys as columns.

    It starts as random vectors, of length 1 where ``unit`` says so. A size that the batch doesn't
    divide is refused, as in MoCo; with ``wrap`` a batch that runs past the end goes on at the
    beginning, as in InfoXLM. (lightly drops what does not fit.)
    """

    keys: Tensor
    pointer: Tensor

    def __init__(
        self,
        size: int,
        width: int,
        *,
        wrap: bool = False,
        unit: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"a queue must have room for at least one key, got {size}")
        keys = torch.randn(size, width, generator=generator)
        self.register_buffer("keys", F.normalize(keys, dim=1) if unit else keys)
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.wrap = wrap

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Write the keys of all processes, in the order of the batch that they share: the first row of
        each process, then the second of each.
        """
        keys, start, size = gathered_in_turn(keys.detach()), int(self.pointer), len(self.keys)
        count = len(keys)
        if count > size or (not self.wrap and (size % count or start + count > size)):
            raise ConfigError(
                f"a queue of {size} keys can't take {count} keys (of all processes together) at place {start}: choose "
                "a size that the batch divides, or let it wrap (queue_wrap=True), with a size of at least one batch"
            )
        places = (torch.arange(count, device=self.keys.device) + start) % size
        self.keys[places] = keys.to(self.keys.dtype)
        self.pointer.fill_((start + count) % size)


class MomentumTwin(nn.Module):
    """A copy of a module that follows it by ``k <- m k + (1 - m) q``, over all parameters and no
    buffer: the statistics of its BatchNorms are those of the keys that it reads.

    Its weights are float32 where the module's are narrower, in which steps of 1 - m would be
    rounded away. It runs without gradient, in the mode (train or eval) of what holds it.
    """

    steps: Tensor

    def __init__(self, source: nn.Module) -> None:
        super().__init__()
        if any(hasattr(parameter, "full_tensor") for parameter in source.parameters()):
            raise ConfigError("a momentum encoder is copied from a whole model; call start() before shard(model)")
        self.twin = as_buffers(copy.deepcopy(source))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def follow(self, source: nn.Module, momentum: float | Callable[[int], float]) -> None:
        """One update towards the module; ``momentum``: a number, or a function of the updates done."""
        share = momentum(int(self.steps)) if callable(momentum) else momentum
        if not 0 <= share <= 1:
            raise ConfigError(f"momentum must lie in [0, 1], got {share}")
        own = dict(self.twin.named_buffers())
        for name, parameter in source.named_parameters():
            value = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter  # type: ignore[operator]
            own[name].mul_(share).add_(value.to(own[name].dtype), alpha=1 - share)  # eq: momentum
        self.steps += 1

    @torch.no_grad()
    def forward(self, *inputs: Any, **named: Any) -> Any:
        dtype = next((b.dtype for b in self.twin.buffers() if b.is_floating_point()), None)

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        return self.twin(*map(cast, inputs), **{name: cast(value) for name, value in named.items()})


class MemoryBank(nn.Module):
    """A vector for each of ``size`` samples, ``vectors`` (size, width), as instance discrimination
    (Wu et al., 2018) and CPD have it: negatives are drawn from all samples, and a sample's vector
    follows what was computed last.

    It starts uniform in ±1/√(width / 3), not of unit length until a row is overwritten.
    """

    vectors: Tensor

    def __init__(self, size: int, width: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"a memory bank must have room for at least one sample, got {size}")
        bound = (width / 3) ** -0.5
        self.register_buffer("vectors", (2 * torch.rand(size, width, generator=generator) - 1) * bound)

    def draw(self, samples: Tensor, number: int, generator: torch.Generator | None = None) -> Tensor:
        """(batch, 1 + number) places: each sample's own first, then uniform ones, the own not excluded."""
        noise = torch.randint(len(self.vectors), (len(samples), number), generator=generator)
        return torch.cat([samples[:, None], noise.to(samples.device)], 1)

    def scores(self, vectors: Tensor, places: Tensor) -> Tensor:
        """(batch, places): the dot product of each vector with what stands in the bank at its places."""
        self._check(places)
        return torch.einsum("bd,bkd->bk", vectors, self.vectors[places].to(vectors.dtype))

    @torch.no_grad()
    def update(self, samples: Tensor, vectors: Tensor, momentum: float = 0.5) -> None:
        """``row <- unit(m row + (1 - m) vector)`` for the samples of all processes."""
        self._check(samples)
        counts = row_counts(samples)
        samples, vectors = gather_rows(samples, counts), gather_rows(vectors.detach(), counts)
        mixed = momentum * self.vectors[samples] + (1 - momentum) * vectors.to(self.vectors.dtype)  # eq: bank
        self.vectors[samples] = F.normalize(mixed, dim=1)  # eq: bank

    def _check(self, places: Tensor) -> None:
        if places.numel() and not (int(places.min()) >= 0 and int(places.max()) < len(self.vectors)):
            raise InputError(
                f"samples must lie in 0..{len(self.vectors) - 1}, got {int(places.min())}..{int(places.max())}"
            )


def as_buffers(module: nn.Module) -> nn.Module:
    """The module with each parameter as a buffer of the same name, float32 where it was narrower; in place."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else widest(buffer)
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:  # what is tied stays tied
                made[id(parameter)] = widest(parameter.detach())
            del part._parameters[name]
            part.register_buffer(name, made[id(parameter)])
    return module


def widest(tensor: Tensor) -> Tensor:
    """float32 where it is a narrower float."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


def momentum_schedule(written: str | float) -> Callable[[int], float]:
    """The momentum after each update, from 0, as InfoXLM's options say it.

    "constant,0.999", or a number; "linear,START,END,FROM,TO": between two updates from one value to another;
    "exponential,ALPHA,LEAST,MOST": ``1 - update^-alpha`` within bounds; "constant_with_refresh,M,EVERY": M, and 0 each
    so many updates, when the twin becomes a copy again.
    """
    if isinstance(written, int | float):
        written = f"constant,{written}"
    kind, *rest = str(written).split(",")
    counts = {"constant": 1, "linear": 4, "exponential": 3, "constant_with_refresh": 2}
    try:
        numbers = [float(number) for number in rest]
    except ValueError:
        numbers = []
    if counts.get(kind) != len(numbers):
        known = "constant,M; linear,START,END,FROM,TO; exponential,ALPHA,LEAST,MOST; constant_with_refresh,M,EVERY"
        raise ConfigError(f"momentum={written!r} is no schedule; there are {known}")
    if kind == "constant":
        return lambda step: numbers[0]
    if kind == "linear":
        start, end, low, high = numbers
        return lambda step: low + (high - low) * min(1.0, max(0.0, (step - start) / (end - start)))
    if kind == "exponential":
        alpha, low, high = numbers
        return lambda step: min(high, max(low, 1 - step**-alpha if step else low))
    return lambda step: 0.0 if step % int(numbers[1]) == 0 else numbers[0]


def gathered_in_turn(rows: Tensor) -> Tensor:
    """The rows of all processes, the first of each, then the second of each: the order of a batch of
    which process r took every row r, r + world, ...
    """
    counts = row_counts(rows)
    parts = gather_rows(rows, counts).split(counts)
    return torch.stack([part[turn] for turn in range(max(counts)) for part in parts if turn < len(part)])


def shuffled_keys(encode: Callable[[dict[str, Any]], Tensor], inputs: dict[str, Any]) -> Tensor:
    """The keys of inputs, computed on other processes' rows (MoCo's shuffling BN): the rows of all processes are
    permuted, each encodes its part, and the keys come back in order. So the statistics of a BatchNorm never
    tell which key belongs to the query. Counts of the rows, such as ``lengths``, go with them. With one process
    nothing is moved.
    """
    tensors = {name: x for name, x in inputs.items() if isinstance(x, Tensor)}
    if world() == 1 or not tensors:
        return encode(inputs)
    counts = row_counts(next(iter(tensors.values())))
    device = next(iter(tensors.values())).device
    order = torch.randperm(sum(counts)).to(device)
    dist.broadcast(order, 0)
    own = order.split(counts)[rank()]
    moved: dict[str, Any] = {name: gather_rows(x, counts)[own] for name, x in tensors.items()}
    for name in COUNTS & {name for name, x in inputs.items() if x is not None} - set(tensors):
        moved[name] = gather_rows(torch.tensor(inputs[name], device=device), counts)[own].tolist()
    keys = encode({**inputs, **moved})
    everyone = gather_rows(keys, counts)
    back = torch.empty_like(everyone)
    back[order] = everyone
    return back.split(counts)[rank()]
