"""Learned gates (McCarley, Chakravarti, Sil, 2019; Louizos et al., 2018): which heads, feed-forward
units and hidden dimensions go.

    zoo.apply(model, zoo.GatePruning(gates=("heads", "units", "hidden")))
    loss = output.loss + sum(weight[kind] * count for kind, count in gates.gate_penalty(model).items())
    gates.close_gates(model)                      # what is shut is removed, the rest goes into the matrices

    z = clamp(s (r - l) + l, 0, 1),  s = sigmoid((log u - log(1 - u) + score) / b)  while training; u is left out after

A gate stands in front of each head's part of the output matrix, in front of each unit's part of the
second feed-forward matrix, and, one for the whole network, behind every norm that the hidden states
pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, TechniqueError
from zoo.layers.extend import check_last, extend, restore
from zoo.models.base.model import Model, bare_model
from zoo.techniques.base import PlacedTechnique, parts_of
from zoo.techniques.pruning.masks import GatedInput, GatedOutput, HardConcrete
from zoo.techniques.pruning.structured import check_attention, check_feed_forward, remove_heads, remove_units
from zoo.techniques.pruning.width import Stream, remove_dimensions

GATES = ("heads", "units", "hidden")


@dataclass(frozen=True, kw_only=True)
class GatePruning(PlacedTechnique):
    """A hard concrete gate for each head, each feed-forward unit, each dimension of the hidden width
    ("heads", "units", "hidden"), learned under `gate_penalty`; `close_gates` then removes what is
    shut. ``streams`` and ``depths`` restrict the first two.
    """

    gates: tuple[str, ...] = ("heads", "units")  # of "heads", "units", "hidden"
    start: float = 2.197  # first logit of the gates

    def check(self) -> None:
        if not self.gates or set(self.gates) - set(GATES):
            raise ConfigError(f"gates={self.gates} must name some of {', '.join(GATES)}")

    def change(self, model: Model, generator: torch.Generator | None) -> Sequence[str] | None:
        found: list[tuple[Any, int]] = []
        if "heads" in self.gates:
            for site in self.places(model, "self-attention"):
                check_attention(site)
                found.append((site.module.output, int(site.module.head_size)))  # type: ignore[arg-type]
        if "units" in self.gates:
            for site in self.places(model, "feed-forward"):
                check_feed_forward(site)
                found.append((site.module.down, 1))
        norms = list(_norms(model).values()) if "hidden" in self.gates else []
        for linear, span in found:
            extend(linear, GatedInput)
            linear.gate, linear.span = self._gate(linear, linear.in_features // span), span
        for number, norm in enumerate(norms):
            extend(norm, GatedOutput)
            if number == 0:
                norm.gate = self._gate(norm, len(norm.weight))
            object.__setattr__(norm, "own_gate", norms[0].gate)  # one for all, see `zoo.techniques.sharing`
        return None

    def _gate(self, part: Any, size: int) -> HardConcrete:
        with part.weight.device:
            gate = HardConcrete((size,), self.start)
        gate.scores.data = gate.scores.data.to(part.weight.dtype)
        return gate.train(part.training)


def _norms(model: Model) -> dict[str, Any]:
    norms = Stream.of(model).norms()
    if not norms:
        raise TechniqueError(f"{type(model).__name__} has no norm that its hidden states pass, to put the gate behind")
    return norms


def gated_parts(model: nn.Module) -> dict[str, Any]:
    """The linear layers with gated inputs (heads and units), by path."""
    return parts_of(model, GatedInput)


def gated_norms(model: nn.Module) -> dict[str, Any]:
    """The norms with gated outputs, by path; all have one gate, ``own_gate``."""
    return parts_of(model, GatedOutput)


def gate_penalty(model: nn.Module) -> dict[str, Tensor]:
    """The expected number of open gates, of "heads", "units" and "hidden": each to be added to the
    loss with its own weight.
    """
    found: dict[str, list[Tensor]] = {}
    for part in gated_parts(model).values():
        found.setdefault("units" if part.span == 1 else "heads", []).append(part.gate.chance_open().sum())
    for norm in list(gated_norms(model).values())[:1]:
        found["hidden"] = [norm.own_gate.chance_open().sum()]
    if not found:
        raise TechniqueError(f"{type(bare_model(model)).__name__} has no gates; apply zoo.GatePruning first")
    return {name: torch.stack(counts).sum() for name, counts in found.items()}


@torch.no_grad()
def close_gates(model: nn.Module) -> None:
    """Remove the heads, units and hidden dimensions whose gate is shut, and put the other gates'
    values into the matrix or norm beside them.

    Without hidden gates the smaller model gives what the gated one gave in eval mode; with them the
    norms have fewer dimensions to take their statistics over. It is recorded as `HeadPruning`,
    `FeedForwardPruning` and `WidthPruning`.
    """
    bare = bare_model(model)
    check_last(gated_parts(bare).items(), GatedInput)
    check_last(gated_norms(bare).items(), GatedOutput)
    shut: dict[int, dict[str, list[int]]] = {0: {}, 1: {}}
    norms = list(gated_norms(bare).values())
    gone = (norms[0].own_gate.eval()() == 0).nonzero().flatten().tolist() if norms else []
    if norms and len(gone) == len(norms[0].own_gate.scores):
        raise TechniqueError(
            "the gate of every hidden dimension is shut, so that no model is left; weigh the penalty less"
        )
    for path, part in gated_parts(bare).items():
        gate = part.gate.eval()()
        part.weight.mul_(gate.repeat_interleave(part.span))
        shut[int(part.span == 1)][path.rpartition(".")[0]] = (gate == 0).nonzero().flatten().tolist()
        del part.gate
        del part.span
        restore(part, GatedInput)
    for norm in norms:
        for tensor in norm.parameters(recurse=False):
            tensor.mul_(norm.own_gate())
    for norm in norms:
        norm.__dict__.pop("own_gate")
        if "gate" in norm._modules:
            del norm.gate
        restore(norm, GatedOutput)
    bare.techniques = tuple(t for t in bare.techniques if not isinstance(t, GatePruning))
    remove_heads(bare, shut[0])
    remove_units(bare, shut[1])
    if gone:
        remove_dimensions(model, gone)
