"""ELECTRA's objectives: finding replaced tokens, and the step that trains generator and
discriminator together.

    corrupted = original text with the generator's samples written at the masked places
    loss = gen_weight · (masked words) + disc_weight · (replaced tokens over all real tokens)

The gradient stops at the samples. A place where the sample happens to be the original counts as
original.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.masking import write_samples
from zoo.errors import ConfigError
from zoo.models.base.outputs import Output
from zoo.tasks.base import TaskModel
from zoo.tasks.losses import binary_loss

MASK_SHARE = 0.85  # of the chosen places; the others keep their token, none gets a random one
NOISE = 1e-9


@dataclass(frozen=True)
class ElectraDraws:
    """The random part of one step: ``positions`` (batch, n) int64, drawn with replacement; ``keep``
    (batch, n) uniform, below 0.85 = masked; ``noise`` (batch, n, vocabulary) uniform, for the
    Gumbel trick.
    """

    positions: Tensor
    keep: Tensor
    noise: Tensor


@dataclass(frozen=True)
class ElectraStep(Output):
    """One step's losses and all that lies between: what the generator saw and said, what the
    discriminator saw and was to say.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    masked_ids: Tensor  # (batch, length)
    positions: Tensor  # (batch, n), 0 where unused
    originals: Tensor  # (batch, n), 0 where unused
    weights: Tensor  # (batch, n), 1 = used
    generator_logits: Tensor  # (batch, n, vocabulary)
    samples: Tensor  # (batch, n)
    corrupted_ids: Tensor  # (batch, length)
    replaced: Tensor  # (batch, length) bool
    logits: Tensor  # (batch, length)
    generator: Any = None  # what either model returned
    discriminator: Any = None


@dataclass(frozen=True, kw_only=True)
class ElectraMasking:
    """What is masked: about ``mask_probability`` of a text's real tokens, at most
    ``max_predictions``; ``special_ids`` are never chosen ([CLS], [SEP], [MASK]).
    """

    mask_id: int
    special_ids: Collection[int]
    max_predictions: int
    mask_probability: float = 0.15

    def draw(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        vocab_size: int,
        generator: torch.Generator | None = None,
    ) -> ElectraDraws:
        """What chance has to say in one step."""
        batch, count = input_ids.shape[0], self.max_predictions
        special = torch.tensor(tuple(self.special_ids), device=input_ids.device)
        candidates = attention_mask.bool() & ~torch.isin(input_ids, special)
        positions = torch.multinomial(candidates.float(), count, replacement=True, generator=generator)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, device=input_ids.device, generator=generator)

        return ElectraDraws(positions, uniform(batch, count), uniform(batch, count, vocab_size))

    def used(self, real: Tensor) -> Tensor:
        """Which of the drawn places count, (batch, n) bool, for ``real`` (batch, length), 1 = a real
        token.
        """
        wanted = (real.sum(1) * self.mask_probability).round().clamp(1, self.max_predictions)  # (batch,)
        return torch.arange(self.max_predictions, device=real.device) < wanted[:, None]


class ElectraPretraining(nn.Module):
    """A generator and a discriminator that are trained together and share all embeddings but the
    projection.

    ``generator``: a model for the task masked-lm, ``discriminator``: one for
    replaced-token-detection; the generator takes over the discriminator's tables and norm unless
    ``shared`` is False.
    """

    def __init__(
        self,
        generator: TaskModel,
        discriminator: TaskModel,
        masking: ElectraMasking,
        *,
        weights: tuple[float, float] = (1.0, 50.0),
        temperature: float = 1.0,
        disallow_correct: bool = False,
        shared: bool = True,
    ) -> None:
        super().__init__()
        self.generator, self.discriminator, self.masking = generator, discriminator, masking
        self.weights, self.temperature, self.disallow_correct = weights, temperature, disallow_correct
        if shared:
            share_embeddings(generator.model, discriminator.model)

    def draw(self, input_ids: Tensor, attention_mask: Tensor, generator: torch.Generator | None = None) -> ElectraDraws:
        """What chance has to say in one step, see `ElectraMasking.draw`."""
        return self.masking.draw(input_ids, attention_mask, self.generator.config.vocab_size, generator)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        draws: ElectraDraws | None = None,
        generator: torch.Generator | None = None,
    ) -> ElectraStep:
        """input_ids, attention_mask, token_type_ids (batch, length). ``draws``: what `draw` would
        give, else drawn from ``generator``.
        """
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        draws = self.draw(input_ids, real, generator) if draws is None else draws

        used = self.masking.used(real)  # (batch, n)
        positions = draws.positions * used
        originals = input_ids.gather(1, positions) * used
        hidden_at = positions * (draws.keep < MASK_SHARE)  # eq: masked
        masked, _ = write_samples(input_ids, torch.full_like(positions, self.masking.mask_id), hidden_at)  # eq: masked

        guessed = self.generator.model(masked, attention_mask, token_type_ids)
        states = guessed.last_hidden_state
        states = states.gather(1, positions[:, :, None].expand(-1, -1, states.shape[2]))  # (batch, n, hidden)
        words = self.generator.heads["masked_lm"](states, self.generator.token_table)  # (batch, n, vocabulary)
        nll = F.cross_entropy(words.flatten(0, 1), originals.flatten(), reduction="none").unflatten(0, originals.shape)
        weights = used.to(nll.dtype)
        word_loss = (nll * weights).sum() / (weights.sum() + 1e-6)  # eq: loss

        never = originals if self.disallow_correct else None
        samples = sample_words(words, draws.noise, self.temperature, never)  # eq: corrupted
        corrupted, written = write_samples(input_ids, samples, positions)  # eq: corrupted
        replaced = written & (corrupted != input_ids)  # eq: corrupted

        judged = self.discriminator(corrupted, attention_mask, token_type_ids)
        token_loss = binary_loss(judged.logits, replaced, real, epsilon=1e-6)  # eq: loss
        loss = self.weights[0] * word_loss + self.weights[1] * token_loss  # eq: loss
        return ElectraStep(
            loss=loss,
            losses={"masked_lm": word_loss, "replaced_token": token_loss},
            masked_ids=masked,
            positions=positions,
            originals=originals,
            weights=weights,
            generator_logits=words,
            samples=samples,
            corrupted_ids=corrupted,
            replaced=replaced,
            logits=judged.logits,
            generator=guessed,
            discriminator=judged.encoded,
        )


@torch.no_grad()
def sample_words(logits: Tensor, noise: Tensor, temperature: float = 1.0, disallowed: Tensor | None = None) -> Tensor:
    """A word from each softmax, by the Gumbel trick: logits and uniform ``noise`` (...,
    vocabulary), ``disallowed`` ids (...) -> (...).
    """
    scores = logits / temperature  # eq: gumbel
    if disallowed is not None:
        scores = scores - 1000.0 * F.one_hot(disallowed, scores.shape[-1]).to(scores.dtype)
    return (scores - torch.log(-torch.log(noise + NOISE) + NOISE)).argmax(-1)  # eq: gumbel


def share_embeddings(generator: Any, discriminator: Any) -> None:
    """Make the generator read the discriminator's token, position and segment tables and norm; each
    keeps its projection.
    """
    own, shared = generator.embeddings, discriminator.embeddings
    if own.token.weight.shape != shared.token.weight.shape:
        sizes = f"{tuple(own.token.weight.shape)} and {tuple(shared.token.weight.shape)}"
        raise ConfigError(
            f"shared embeddings need token tables of one shape, got {sizes}; give both models one embedding_size, or "
            "shared=False"
        )
    for part in ("token", "position", "segment", "norm"):
        setattr(own, part, getattr(shared, part))
