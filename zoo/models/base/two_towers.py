"""A text tower and an image tower that are compared by their vectors alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError, unknown
from zoo.layers.init import initialise
from zoo.layers.outputs import Encoded
from zoo.layers.trace import Wanted
from zoo.models.base.model import Model, Reading, need_pooler
from zoo.models.base.outputs import Towers
from zoo.models.base.sites import Site, _sites

TEMPERATURE = 0.07  # that the logits are divided by before training
LARGEST_SCALE = 100.0  # that they are ever multiplied by


def picture_of(towers: Towers) -> Float[Tensor, "batch size"]:
    """The pooled vector of the image tower, ahead of the projection."""
    if towers.image is None:
        raise InputError("give pixel_values: this reads the picture's vector")
    return need_pooler(towers.image)


class TwoTowers(Model):
    """A text tower and an image tower, each a `Model` of its own, and what takes their vectors into one space.

        text = W_t pooled(text tower),  image = W_v pooled(image tower)
        logits = exp(logit_scale) · unit(image) unit(text)ᵀ  (+ logit_bias)

    A family builds the parts and hands them over. ``text_vector`` and ``image_vector`` say what a tower gives, its
    pooled vector unless a family reads another; ``scale`` is what logits are multiplied by.
    """

    smoothing: ClassVar[float] = 0.0  # of the labels of the contrastive loss
    locked: frozenset[str] = frozenset()  # towers that `lock` keeps as they are
    inputs: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "position_ids", "pixel_values")
    offers = {
        "text_vector": Reading(lambda e: e.text_embeds),
        "image_vector": Reading(lambda e: e.image_embeds),
        "picture": Reading(lambda e: picture_of(e)),  # ahead of the projection, as linear probes read it
    }

    def __init__(
        self,
        config: Any,
        text: Model,
        image: Model,
        *,
        text_projection: nn.Module | None = None,
        image_projection: nn.Module | None = None,
        logit_bias: bool = False,
    ) -> None:
        super().__init__(config)
        self.text, self.image = text, image
        self.text_projection = nn.Identity() if text_projection is None else text_projection
        self.image_projection = nn.Identity() if image_projection is None else image_projection
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))
        self.logit_bias = nn.Parameter(torch.tensor(0.0)) if logit_bias else None

    # --- what a family may say its own way ----------------------------------------------------------------------------

    def text_vector(self, encoded: Encoded, given: Mapping[str, Any]) -> Float[Tensor, "batch size"]:
        """What the text tower gives, ahead of the projection. given: the ``attention_mask`` and ``lengths`` of the
        call, where it had them.
        """
        return need_pooler(encoded)

    def image_vector(self, encoded: Encoded) -> Float[Tensor, "batch size"]:
        """What the image tower gives, ahead of the projection."""
        return need_pooler(encoded)

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What the logits are multiplied by."""
        return self.logit_scale.exp()  # eq: scale

    @property
    def embedding_size(self) -> int:
        """The width of the vectors that are compared: the config's ``projection_size``, else the image tower's."""
        return int(getattr(self.config, "projection_size", None) or self.config.image_hidden_size)

    def train(self, mode: bool = True) -> Self:
        """As of any module; locked towers stay in eval mode."""
        super().train(mode)
        for tower in self.locked:
            getattr(self, tower).train(False)
        return self

    # --- what callers use ---------------------------------------------------------------------------------------------

    def encode_text(self, *inputs: Any, normalize: bool = False, **named: Any) -> Float[Tensor, "batch size"]:
        """A vector for each text; takes what the text tower takes. ``normalize``: of unit length."""
        given = dict(zip(("input_ids", "attention_mask"), inputs, strict=False)) | named
        vectors = self.text_projection(self.text_vector(self.text(*inputs, **named), given))  # eq: text-vector
        return F.normalize(vectors, dim=-1) if normalize else vectors

    def encode_image(
        self, pixel_values: Float[Tensor, "batch channels height width"], *, normalize: bool = False, **named: Any
    ) -> Float[Tensor, "batch size"]:
        """A vector for each picture; takes what the image tower takes. ``normalize``: of unit length."""
        vectors = self.image_projection(self.image_vector(self.image(pixel_values, **named)))  # eq: image-vector
        return F.normalize(vectors, dim=-1) if normalize else vectors

    def forward(
        self,
        input_ids: Int[Tensor, "texts length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "texts length"] | None = None,
        position_ids: Int[Tensor, "*#texts length"] | None = None,
        inputs_embeds: Float[Tensor, "texts length embedding"] | None = None,
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Towers:
        """Encode texts, pictures, or both; only the towers run that have something to read.

        Each text is compared with each picture, so there may be more of one than of the other. attention_mask:
        (texts, length), 1/True = a real token. lengths: real tokens per text, where they stand first.
        """
        words = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "lengths": lengths,
        }
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        return self.compared(words, {"pixel_values": pixel_values}, wanted)

    def compared(self, words: Mapping[str, Any], pictures: Mapping[str, Any], wanted: Mapping[str, Any]) -> Towers:
        """The result, from what each tower is given by name, None left out, and what is wanted of both."""
        text = image = text_embeds = image_embeds = per_image = None
        words, pictures = ({n: x for n, x in given.items() if x is not None} for given in (words, pictures))
        if "input_ids" in words or "inputs_embeds" in words:
            text = self.text(**words, **wanted)
            text_embeds = F.normalize(self.text_projection(self.text_vector(text, words)), dim=-1)  # (texts, size)
        if "pixel_values" in pictures:
            image = self.image(**pictures, **wanted)
            image_embeds = F.normalize(self.image_projection(self.image_vector(image)), dim=-1)  # (pictures, size)
        if text is None and image is None:
            raise InputError("give input_ids, pixel_values or both: there is nothing to read")
        if text_embeds is not None and image_embeds is not None:
            per_image = self.logits(image_embeds, text_embeds)
        return Towers(
            logits_per_image=per_image,
            logits_per_text=None if per_image is None else per_image.T,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text=text,
            image=image,
        )

    def logits(
        self, image_embeds: Float[Tensor, "pictures size"], text_embeds: Float[Tensor, "texts size"]
    ) -> Float[Tensor, "pictures texts"]:
        """How well each picture and each text go together, from vectors of unit length."""
        logits = self.scale.to(text_embeds.dtype) * image_embeds @ text_embeds.T  # eq: logits
        return logits if self.logit_bias is None else logits + self.logit_bias

    def lock(self, tower: Literal["text", "image"]) -> None:
        """Keep a tower as it is while the rest is trained (LiT: the image tower): its parameters get no gradients, and
        it stays in eval mode, so that its batch norms don't move either. For this process; it isn't saved.
        """
        if tower not in ("text", "image"):
            raise unknown("tower", str(tower), ("text", "image"))
        self.locked |= {tower}
        getattr(self, tower).requires_grad_(False).train(False)

    @torch.no_grad()
    def limit_scale(self, largest: float = LARGEST_SCALE) -> None:
        """Keep what the logits are multiplied by from growing beyond ``largest``, as CLIP's training does behind each
        step.
        """
        self.logit_scale.clamp_(max=math.log(largest))  # eq: limit

    # --- the common surface of a model --------------------------------------------------------------------------------

    @property
    def embeddings(self) -> Any:
        """The text tower's."""
        return self.text.embeddings

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read; the pooled vector is the picture's."""
        return {"text": config.hidden_size, **dict.fromkeys(("image", "pooled"), config.image_hidden_size)}

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights, each tower's as its own family draws them."""
        self.text.init_weights(generator)
        self.image.init_weights(generator)
        for projection in (self.text_projection, self.image_projection):
            initialise(projection, self.config.initializer_range, generator)
        self.init_parameters(self.config.initializer_range, generator)

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """The temperature before training, and no bias."""
        with torch.no_grad():
            self.logit_scale.fill_(math.log(1 / TEMPERATURE))
            if self.logit_bias is not None:
                self.logit_bias.zero_()

    def sites(self) -> Iterator[Site]:
        """Every place that a technique may look for; the towers are the streams "text" and "image"."""
        yield from _sites(self.text, "text", "text", ())
        yield from _sites(self.image, "image", "image", ())
