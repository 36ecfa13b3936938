"""The optimisers that the papers trained with, and the groups of parameters that they treat apart.

    BERT    u = m / (sqrt(v) + eps) + decay * w    w <- w - rate * u    Adam *without* bias correction, decoupled decay
    LAMB     the same u,            w <- w - rate * |w| / |u| * u          You et al., 2020, as ALBERT used it
    LARS     v = momentum * v + rate * eta * |w| / |g| * g,   w <- w - v     You et al., 2017, as SimCLR used it
    ELECTRA  BERT's, with a rate that falls from layer to layer towards the input

Norms and biases are not decayed, nor adapted by LAMB: ``decay_groups`` sorts them out. BERT, ALBERT
and ELECTRA clip the gradients to a global norm of 1 first (``clip_gradients``). XLM trains with
``torch.optim.AdamW``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.errors import ConfigError

NO_DECAY = re.compile(r"bias|norm", re.IGNORECASE)
"""Names of parameters that the papers exempt from weight decay: biases and whatever belongs to a
norm, in our names and in others'.
"""

Group = dict[str, Any]


class BertAdam(Optimizer):
    """Adam as BERT's code has it: no bias correction, ``eps`` outside the root, weight decay added
    to the update.

    A group may set ``weight_decay`` and ``lr`` of its own. Without the correction the first update
    is ``(1 - beta1) / sqrt(1 - beta2)`` = 3.2 times what ``torch.optim.AdamW`` takes: use a
    warm-up.
    """

    more: ClassVar[Mapping[str, Any]] = {}  # what else a group has, by default

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ):
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(
                f"lr={lr} and weight_decay={weight_decay} must not be negative, eps={eps} must be above zero, "
                f"betas={betas} lie in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, **self.more})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: Group) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.is_sparse:
            raise ConfigError(
                f"{type(self).__name__} takes dense gradients only; build the embedding without sparse=True"
            )
        beta1, beta2 = group["betas"]
        state = self.state[parameter]
        if not state:
            state["mean"] = torch.zeros_like(parameter)
            state["square"] = torch.zeros_like(parameter)
        mean, square = state["mean"], state["square"]
        mean.mul_(beta1).add_(gradient, alpha=1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        update = mean / (square.sqrt() + group["eps"])
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter
        parameter.sub_(group["lr"] * self._ratio(parameter, update, group) * update)

    def _ratio(self, parameter: Tensor, update: Tensor, group: Group) -> float | Tensor:
        return 1.0


class Lamb(BertAdam):
    """LAMB (You et al., 2020) as ALBERT used it: ``BertAdam`` with the step of each tensor scaled
    by ``|w| / |update|``.

    The update includes the decay; the ratio is 1 where either norm is zero. A group with
    ``adapt=False`` (norms and biases, see ``decay_groups``) takes plain steps. Other
    implementations correct the bias; ALBERT's does not.
    """

    more = {"adapt": True}

    def _ratio(self, parameter: Tensor, update: Tensor, group: Group) -> Tensor | float:
        if not group["adapt"]:
            return 1.0
        weight: Tensor = parameter.norm()
        step: Tensor = update.norm()
        # a tensor: nobody waits for the device
        return torch.where((weight > 0) & (step > 0), weight / step, torch.ones_like(weight))


class Lars(Optimizer):
    """LARS (You et al., 2017) as SimCLR's code has it: SGD with momentum, in which each tensor's rate
    is scaled by ``eta |w| / |g|``.

    The gradient ``g`` has the decay in it, and the scaled rate enters the momentum. The ratio is 1
    where either norm is zero, and in a group with ``adapt=False`` (batch norms, biases, see
    ``decay_groups``). SimCLR: lr = 0.3 per 256 pictures of a batch, momentum 0.9, eta 0.001.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[Group],
        lr: float,
        momentum: float = 0.9,
        eta: float = 0.001,
        weight_decay: float = 1e-4,
    ):
        if lr < 0 or weight_decay < 0 or eta <= 0 or not 0 <= momentum < 1:
            raise ConfigError(
                f"lr={lr} and weight_decay={weight_decay} must not be negative, eta={eta} must be above zero, "
                f"momentum={momentum} lies in [0, 1)"
            )
        defaults = {"lr": lr, "momentum": momentum, "eta": eta, "weight_decay": weight_decay, "adapt": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad + group["weight_decay"] * parameter, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: Group) -> None:
        state = self.state[parameter]
        if not state:
            state["velocity"] = torch.zeros_like(parameter)
        if group["adapt"]:
            weight, slope = parameter.norm(), gradient.norm()
            ratio = group["eta"] * weight / slope
            gradient = gradient * torch.where((weight > 0) & (slope > 0), ratio, torch.ones_like(weight))
        state["velocity"].mul_(group["momentum"]).add_(gradient, alpha=group["lr"])
        parameter.sub_(state["velocity"])


def clip_gradients(parameters: Iterable[Tensor], limit: float = 1.0) -> Tensor:
    """Scale all gradients in place so that their common norm is at most ``limit``; returns the norm
    they had.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.tensor(0.0)
    norm: Tensor = torch.stack([g.norm() for g in gradients]).norm()
    for gradient in gradients:
        gradient.mul_(limit / norm.clamp(min=limit))
    return norm


def decay_groups(
    named_parameters: Iterable[tuple[str, Tensor]], weight_decay: float = 0.01, exempt: re.Pattern[str] | str = NO_DECAY
) -> list[Group]:
    """Two groups: parameters that are decayed (and adapted by LAMB), and those whose name
    ``exempt`` is found in, which are neither.
    """
    exempt = re.compile(exempt)
    groups: tuple[Group, Group] = (
        {"params": [], "weight_decay": weight_decay, "adapt": True},
        {"params": [], "weight_decay": 0.0, "adapt": False},
    )
    for name, parameter in named_parameters:
        groups[bool(exempt.search(name))]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def layer_depth(name: str, num_layers: int) -> int:
    """How deep a parameter of ours lies: 0 embeddings, i + 1 layer i, ``num_layers`` + 2 the pooler
    and heads (as ELECTRA counts).

    In a stack that shares its blocks (ALBERT) the group counts as the layer.
    """
    if name.split(".")[0] == "embeddings":
        return 0
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block is None:
        return num_layers + 2
    depth = int(block[1]) + 1
    if depth > num_layers:
        raise ConfigError(f"{name!r} lies in layer {depth - 1}, but num_layers={num_layers}")
    return depth


def layerwise_groups(
    named_parameters: Iterable[tuple[str, Tensor]],
    rate: float,
    factor: float,
    num_layers: int,
    weight_decay: float = 0.01,
    exempt: re.Pattern[str] | str = NO_DECAY,
    depth: Callable[[str, int], int] = layer_depth,
) -> list[Group]:
    """``decay_groups`` for each depth, with the rate ``rate * factor^(num_layers + 2 - depth)``
    (ELECTRA fine-tuning: 0.8, large 0.9).
    """
    if factor <= 0:
        raise ConfigError(f"factor={factor} must be above zero; 1.0 gives every layer the same rate")
    by_depth: dict[int, list[tuple[str, Tensor]]] = {}
    for name, parameter in named_parameters:
        by_depth.setdefault(depth(name, num_layers), []).append((name, parameter))
    return [
        group | {"lr": rate * factor ** (num_layers + 2 - level)}
        for level, members in sorted(by_depth.items())
        for group in decay_groups(members, weight_decay, exempt)
    ]


def optimizer_for(
    model: nn.Module, optimizer: type[BertAdam] = BertAdam, lr: float = 1e-4, weight_decay: float = 0.01
) -> BertAdam:
    """``optimizer`` over the trainable parameters of ``model``, norms and biases exempt from
    decay.
    """
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return optimizer(decay_groups(trainable, weight_decay), lr=lr, weight_decay=weight_decay)
