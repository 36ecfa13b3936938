"""A dual encoder: an image tower of any family beside a text tower of any family, as LiT (Zhai et al., 2022) tunes
them and the Hugging Face library's VisionTextDualEncoderModel joins them.

    image  = W_v pooled(image tower)                          without biases, unless the config says otherwise
    text   = W_t pooled(text tower),  or  W_t Σ_i h_i / n     the mean over the n real tokens: sentence encoders
    logits = exp(s) · unit(image) unit(text)ᵀ,   s = ln(1 / 0.07) at first
    loss   = (CE(logits, own text) + CE(logitsᵀ, own picture)) / 2

LiT starts from towers that were trained apart and keeps the image tower locked: it has no gradients, and stays in eval
mode, for a batch norm would move without any. CLIP-Italian trains the maps alone first, then both towers.

Traps: the config holds each tower's family and config, so a tower's defaults are its family's, dropout among them. What
is pooled is what the tower gives: CLIP's vision a normalized class token without CLIP's own projection, BERT the first
state through its tanh, which sentence encoders such as MiniLM store and never trained: they want the mean. A tower's
own projection (``projection_size`` of CLIP's towers) comes ahead of W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import ConfigError, unknown
from zoo.layers import pool
from zoo.layers.extend import own_class
from zoo.layers.outputs import Encoded
from zoo.models.base.config import Config, check_positive, free
from zoo.models.base.image_encoder import ImageEncoder
from zoo.models.base.model import Model, need_pooler
from zoo.models.base.two_towers import TwoTowers
from zoo.registry import variants as registry
from zoo.registry.variants import TEXT_INPUTS

TOWERS = ("text", "image")


def family_class(tower: str, family: str) -> Any:
    """The model class of a family that can be a tower of the kind."""
    families = registry.families()
    if family not in families:
        raise unknown(f"family of {tower} towers", family, families)
    found = families[family][0].model_class()
    reads_text = issubclass(found, Model) and set(found.inputs) <= set(TEXT_INPUTS) and "text" in found.offers
    if not (issubclass(found, ImageEncoder) if tower == "image" else reads_text):
        wanted = "pictures alone, such as clip-vision" if tower == "image" else "texts alone, such as bert"
        raise ConfigError(f"{tower}_family={family!r} can't be the {tower} tower: give a family that reads {wanted}")
    return found


def pooled_width(model_class: Any, config: Any, states: str, pooled: bool = True) -> int:
    """How wide a tower's vector is: the pooled one, or a mean of states."""
    return int(model_class.widths(config)["pooled" if pooled else states])


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(Config):
    text_family: str = "bert"  # family of the text tower
    text: Config = field(default_factory=Config)  # config of the text tower, or its fields that differ from the default
    image_family: str = "clip-vision"  # family of the image tower
    image: Config = field(default_factory=Config)  # config of the image tower, or its fields that differ
    text_pooling: Literal["pooler", "mean", "cls"] = "pooler"  # a text's vector: pooled, mean over tokens, first state
    projection_size: int = 512  # width of the vectors that are compared
    projection_bias: bool = False  # the two projections have biases
    logit_bias: bool = False  # a learned number is added to the logits, as the sigmoid loss wants
    dropout: float = free(0.0)  # ahead of a task's head; the towers have their own
    initializer_range: float = free(0.02)  # standard deviation of the projections' random weights

    def __post_init__(self) -> None:
        for tower in TOWERS:
            family, given = getattr(self, f"{tower}_family"), getattr(self, tower)
            wanted = family_class(tower, family).Config
            if type(given) is Config:
                given = wanted()
            elif isinstance(given, Mapping):
                given = wanted.from_dict(given)
            if not isinstance(given, wanted):
                raise ConfigError(
                    f"{tower}={type(given).__name__} is no config of {tower}_family={family!r}, which has a "
                    f"{wanted.__name__}; give that, or a dict of its fields"
                )
            if tower == "text" and self.text_pooling != "pooler" and getattr(given, "pooler", False):
                given = given.replace(pooler=False)  # nothing would read it
            object.__setattr__(self, tower, given)
        super().__post_init__()

    def check(self) -> None:
        check_positive(self, "projection_size")
        offers = family_class("text", self.text_family).offers
        if self.text_pooling == "pooler" and ("pooled" not in offers or not getattr(self.text, "pooler", True)):
            raise ConfigError(
                f"text_pooling='pooler' needs a text tower with a pooler, and this {self.text_family} has none; "
                "'mean' takes the mean over its tokens, 'cls' the first one's state"
            )

    def replace(self, **overrides: Any) -> Self:
        """A copy with some fields changed. A dict for a tower changes those fields of it; with another family the
        tower's other fields are that family's defaults.
        """
        for tower in TOWERS:
            changed = overrides.get(f"{tower}_family", getattr(self, f"{tower}_family"))
            given, same = overrides.get(tower), changed == getattr(self, f"{tower}_family")
            if isinstance(given, Mapping) and same:
                overrides[tower] = getattr(self, tower).replace(**given)
            elif given is None and not same:
                overrides[tower] = Config()
        if overrides.get("text_pooling") == "pooler" and "text" not in overrides and hasattr(self.text, "pooler"):
            overrides["text"] = self.text.replace(pooler=True)  # it was left out while nothing read it
        return super().replace(**overrides)

    @property
    def hidden_size(self) -> int:
        """Width of the text's vector, ahead of the projection."""
        text = family_class("text", self.text_family)
        return pooled_width(text, self.text, "text", self.text_pooling == "pooler")

    @property
    def image_hidden_size(self) -> int:
        """Width of the picture's vector, ahead of the projection."""
        return pooled_width(family_class("image", self.image_family), self.image, "image")

    @property
    def vocab_size(self) -> int:
        """Rows of the text tower's token table."""
        return int(self.text.vocab_size)  # type: ignore[attr-defined]

    @property
    def max_positions(self) -> int:
        """The longest text, in tokens."""
        return int(self.text.max_positions)  # type: ignore[attr-defined]

    @property
    def image_size(self) -> int:
        """Height and width of the pictures that the image tower reads, or is trained on."""
        return int(self.image.image_size)  # type: ignore[attr-defined]

    @property
    def num_segments(self) -> int:
        """Rows of the text tower's segment table; 0 where it has none."""
        return int(getattr(self.text, "num_segments", 0))

    @property
    def channels(self) -> int:
        return int(self.image.channels)  # type: ignore[attr-defined]

    @property
    def height(self) -> int:
        return self.image_size

    @property
    def width(self) -> int:
        return self.image_size


class DualEncoder(TwoTowers):
    Config = DualEncoderConfig
    inputs = (*TEXT_INPUTS, "pixel_values")

    def __init__(self, config: DualEncoderConfig, text: Model | None = None, image: Model | None = None) -> None:
        c = config
        super().__init__(
            c,
            text if text is not None else family_class("text", c.text_family)(c.text),
            image if image is not None else family_class("image", c.image_family)(c.image),
            text_projection=nn.Linear(c.hidden_size, c.projection_size, bias=c.projection_bias),
            image_projection=nn.Linear(c.image_hidden_size, c.projection_size, bias=c.projection_bias),
            logit_bias=c.logit_bias,
        )

    @classmethod
    def of(cls, text: Model, image: Model, *, generator: torch.Generator | None = None, **fields: Any) -> Self:
        """Two models as they are, with their weights, tokenizer and `Images`, and random projections behind them.

        text, image: models that `zoo.create` or `zoo.load` gave, without a task; they become parts of the new one.
        fields: of the config, such as ``projection_size`` or ``text_pooling="mean"``. generator: draws the projections.
        """
        named = {f"{tower}_family": family_of(tower, model) for tower, model in zip(TOWERS, (text, image), strict=True)}
        config = cls.Config.from_dict({**named, "text": text.config, "image": image.config, **fields})
        if text.config != config.text:
            text.config = config.text
            text._modules["pooler"] = None  # nothing would read it
        made = cls(config, text, image).to(text.device, text.dtype)
        for projection in (made.text_projection, made.image_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5, generator=generator)  # type: ignore[operator, arg-type]
            if config.projection_bias:
                nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
        made.find_tokenizer, made.find_images = text.need_tokenizer, lambda: image.images
        return made

    def resize(self, **fields: int) -> None:
        """Bring the image tower to other sizes that its weights can be fitted to, in place, as `Model.resize`."""
        self.image.resize(**fields)
        self.config = self.config.replace(image=self.image.config)

    def text_vector(self, encoded: Encoded, given: Mapping[str, Any]) -> Float[Tensor, "batch size"]:
        """What the text tower gives, ahead of the projection."""
        if self.config.text_pooling == "pooler":
            return need_pooler(encoded)
        real = self.text.padding_of("text", given, encoded).real
        return pool(encoded.last_hidden_state, real, self.config.text_pooling)  # eq: text

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read; the pooled vector is the picture's."""
        return {"text": config.hidden_size, **dict.fromkeys(("image", "pooled"), config.image_hidden_size)}


def family_of(tower: str, model: Model) -> str:
    """The registered family of a model that is to be a tower."""
    found = [name for name, variants in registry.families().items() if variants[0].model_class() is own_class(model)]
    if not found:
        raise ConfigError(
            f"a {type(model).__name__} can't be the {tower} tower: give a registered model as zoo.create makes it, "
            "without a task"
        )
    return next((name for name in found if registry.families()[name][0].maps == name), found[0])
