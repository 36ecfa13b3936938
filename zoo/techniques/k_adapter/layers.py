"""K-Adapter (Wang et al., 2021): adapters beside a model, which read its hidden states and leave
the model as it is.

f_i = h[L_i] + s_{i-1},  s_{-1} = 0          h[0] what enters the first block, L the taps
s_i = f_i + W_u Encoder(W_d f_i)             a small encoder of its own; what leaves the adapter is the last s_i
one adapter   W [h_last ; s]      several: W_t [W_1 [h_last ; s^1] ; W_2 [h_last ; s^2] ...], or with "add" h_last + Σ s
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.layers.extend import Extension
from zoo.layers.masks import Mask
from zoo.layers.padding import padding_like
from zoo.layers.stack import Stack
from zoo.layers.trace import Wanted, chosen


class Narrow(nn.Linear):
    """A projection that starts near zero, N(0, 2e-4), so that the adapter starts as the
    identity.
    """

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        self.weight.normal_(0, 2e-4, generator=generator)
        self.bias.zero_()


class Tap(nn.Module):
    """``f + W_u Encoder(W_d f)``."""

    def __init__(self, hidden_size: int, encoder: Stack, size: int) -> None:
        super().__init__()
        self.down, self.encoder, self.up = Narrow(hidden_size, size), encoder, Narrow(size, hidden_size)

    def forward(self, f: Tensor, mask: Mask) -> Tensor:
        return f + self.up(self.encoder(self.down(f), mask))  # eq: taps


class KnowledgeAdapter(nn.Module):
    """One adapter: a `Tap` at each of the ``taps``, with an encoder of width ``size`` each. ``skip``
    > 0: after every skip-th tap an earlier result is added, counted as the reference counts (result
    number count / skip of the list so far).
    """

    def __init__(
        self, hidden_size: int, taps: Sequence[int], size: int, encoder: Callable[[], Stack], skip: int = 0
    ) -> None:
        super().__init__()
        if skip and any(count // skip >= count for count in range(skip, len(taps) + 1, skip)):
            raise ConfigError(f"skip={skip} would add a result that is not there yet; 0 is off, 2 or more are possible")
        self.taps, self.skip = tuple(taps), skip
        self.adapters = nn.ModuleList(Tap(hidden_size, encoder(), size) for _ in taps)

    def results(self, hidden_states: Sequence[Tensor], mask: Mask) -> tuple[list[Tensor], Tensor]:
        """What each tap gives, and what leaves the adapter: (batch, length, hidden) each."""
        made: list[Tensor] = []
        last = torch.zeros_like(hidden_states[0])  # eq: taps
        for count, (tap, at) in enumerate(zip(self.adapters, self.taps, strict=True), 1):
            last = tap(hidden_states[at] + last, mask)  # eq: taps
            made.append(last)
            if self.skip and count % self.skip == 0:
                last = last + made[count // self.skip]
        return made, last

    def forward(self, hidden_states: Sequence[Tensor], mask: Mask) -> Tensor:
        return self.results(hidden_states, mask)[1]


class KnowledgeFusion(nn.Module):
    """How adapters' results join the model's: "concat" or "add". A single adapter has no second
    matrix.
    """

    def __init__(self, hidden_size: int, names: Sequence[str], how: str) -> None:
        super().__init__()
        self.how = how
        concat = how == "concat"
        self.each = nn.ModuleDict({name: nn.Linear(2 * hidden_size, hidden_size) for name in names} if concat else {})
        self.joint = nn.Linear(len(names) * hidden_size, hidden_size) if concat and len(names) > 1 else None

    def forward(self, last: Tensor, results: Mapping[str, Tensor]) -> Tensor:
        if self.how == "add":
            return last + torch.stack(list(results.values())).sum(0)  # eq: added
        parts = [self.each[name](torch.cat([last, result], -1)) for name, result in results.items()]  # eq: joined
        return parts[0] if self.joint is None else self.joint(torch.cat(parts, -1))  # eq: joined


class WithKnowledge(Extension):
    """A model whose last states are joined with what its knowledge adapters give. A pooler reads
    the joined states; the hidden states and attention maps are the model's own.
    """

    knowledge: nn.ModuleDict
    knowledge_fusion: KnowledgeFusion

    def forward(self, *inputs: Any, output_hidden_states: Wanted = False, **named: Any) -> Any:
        encoded = super().forward(*inputs, output_hidden_states=True, **named)
        last = encoded.last_hidden_state
        given = inputs[1] if len(inputs) > 1 else named.get("attention_mask")
        padding = padding_like(last, given, named.get("lengths"), pack=False)
        mask = Mask(keys=padding.real)
        results = {name: adapter(encoded.hidden_states, mask) for name, adapter in self.knowledge.items()}
        fused = padding.unpack(self.knowledge_fusion(last, results))
        pooler = getattr(self, "pooler", None)
        pooled = encoded.pooler_output if pooler is None else pooler(fused, padding)
        return replace(
            encoded,
            last_hidden_state=fused,
            pooler_output=pooled,
            hidden_states=chosen(encoded.hidden_states, output_hidden_states, "output_hidden_states")
            if output_hidden_states
            else None,
        )
