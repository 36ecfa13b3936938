"""What models return: frozen dataclasses with the field's usual names, never a tuple."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zoo.layers.outputs import Encoded as Encoded
from zoo.layers.outputs import Output as Output


@dataclass(frozen=True)
class Joint(Encoded):
    """Text and regions after one encoder that reads both: an `Encoded` of the joint sequence, the
    text first, as the user gave them.

    ``text`` and ``image`` are its two parts, so that results of one and of two streams are read
    alike.
    """

    text_length: int = 0
    region_length: int | None = None  # None: all that stands behind the text

    @property
    def text(self) -> Encoded:
        """The text's positions (batch, length, hidden), with the pooled vector."""
        return Encoded(
            self.last_hidden_state[:, : self.text_length], self.pooler_output, self._cut(slice(self.text_length))
        )

    @property
    def image(self) -> Encoded:
        """The regions' positions (batch, regions, hidden)."""
        end = None if self.region_length is None else self.text_length + self.region_length
        where = slice(self.text_length, end)
        return Encoded(self.last_hidden_state[:, where], None, self._cut(where))

    def _cut(self, where: slice) -> tuple[Tensor, ...] | None:
        return None if self.hidden_states is None else tuple(state[:, where] for state in self.hidden_states)


@dataclass(frozen=True)
class WithEntities(Encoded):
    """A text read together with what is known of its entities: an `Encoded` of the text, and
    ``entity``, the stream beside it.
    """

    entity: Encoded | None = None

    @property
    def text(self) -> Encoded:
        """The text alone."""
        return Encoded(self.last_hidden_state, self.pooler_output, self.hidden_states, self.attentions)


@dataclass(frozen=True)
class Links(Output):
    """What a source of knowledge was linked to: ``scores`` (batch, spans, candidates), -10,000 for
    what is no candidate; ``entities`` (batch, spans, size), the mixed vectors, zeros where no span
    is; on request ``attention`` (batch, heads, words, spans).
    """

    scores: Tensor
    entities: Tensor
    attention: Tensor | None = None


@dataclass(frozen=True)
class Linked(Encoded):
    """A text whose mentions were linked: an `Encoded`, and by source its `Links`."""

    links: dict[str, Links] = field(default_factory=dict)


@dataclass(frozen=True)
class Streams(Output):
    """Several streams, each an `Encoded`; ``pooler_output`` (batch, size) where the model fuses
    their pooled vectors into one.

    ``cross_attentions``: per block that looks across, one map (batch, heads, query, key), or a
    tuple of one for each direction.
    """

    text: Encoded | None = None
    image: Encoded | None = None
    entity: Encoded | None = None
    joint: Encoded | None = None
    pooler_output: Tensor | None = None
    cross_attentions: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Towers(Output):
    """Texts and pictures that were encoded apart. What was not given is None.

    ``logits_per_image`` (pictures, texts) and ``logits_per_text``, its transpose; ``text_embeds`` (texts, size) and
    ``image_embeds`` (pictures, size), of unit length; ``text`` and ``image``: what each tower returned.
    """

    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None
    text: Encoded | None = None
    image: Encoded | None = None


@dataclass(frozen=True)
class Seq2Seq(Output):
    """An encoder-decoder: the decoder's side flat, the encoder's under ``encoder``."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
    encoder: Encoded | None = None


@dataclass(frozen=True)
class TaskOutput(Output):
    """What a task model returns: ``loss`` and the named ``losses`` it sums (where labels were
    given) and the head's results.

    ``logits`` (batch, classes) or (batch, length, classes); spans as ``start_logits``,
    ``end_logits`` (batch, length), -10,000 at padding; pre-training heads as ``prediction_logits`` (batch, length,
    vocabulary), ``region_logits`` (batch, regions, classes), ``seq_relationship_logits`` and
    ``sop_logits`` (batch, 2); ``embedding`` (batch, hidden). ``scores``: where one task has several
    heads, each head's logits by its name. ``encoded`` is what the model below returned.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    prediction_logits: Tensor | None = None
    seq_relationship_logits: Tensor | None = None
    sop_logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    embedding: Tensor | None = None
    region_logits: Tensor | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)
    encoded: Any = None
