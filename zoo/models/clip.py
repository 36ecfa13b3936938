"""CLIP (Radford et al., 2021): an image tower and a text tower trained so that the vectors of a picture and of its
caption are closer than those of any other two in the batch.

    image_0 = norm([class; W patch_1; ...; W patch_n] + position)             a patch is a square of pixels
    text_0  = token + position                                                 no norm
    h'      = a + W_2 f(W_1 norm(a)),   a = h + MHA(norm(h))                     pre-norm; the text's is causal
    image   = W_v norm(image_L[class]),   text = W_t norm(text_L)[end token]
    logits  = exp(s) · unit(image) unit(text)ᵀ,   s = ln(1 / 0.07) at first
    loss    = (CE(logits, own text) + CE(logitsᵀ, own picture)) / 2

Traps: OpenAI's activation is x · sigmoid(1.702 x), LAION's models have GELU. The patches are embedded without a bias.
The image's last state is not normalized, its pooled vector is; the text's last state is. A text's vector stands at its
largest id, since that is the end token (49407), or, where the config names ``eos_token_id``, at the first such token:
configs of the hub say 2 and mean the former. Nothing masks what follows the end token, but causal attention hides it;
so it is left out unless the caller gives a mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from zoo.models.base.config import check_positive, free
from zoo.models.base.image_encoder import PictureConfig
from zoo.models.base.two_towers import TwoTowers
from zoo.models.clip_towers import ClipText, ClipTextConfig, ClipVision, ClipVisionConfig


@dataclass(frozen=True, kw_only=True)
class ClipConfig(PictureConfig):
    vocab_size: int = 49_408
    hidden_size: int = 512  # of the text tower, as all that does not begin with image_
    num_layers: int = 12
    num_heads: int = 8
    intermediate_size: int = 2048
    max_positions: int = 77
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    eos_token_id: int | None = None  # a text's vector stands at the first such token; None: at the largest id
    layer_scale: bool = False  # a learned factor for each dimension of a sublayer's result
    patch_size: int = 32  # height and width of a patch, in pixels
    image_hidden_size: int = 768  # width of the image tower's states
    image_num_layers: int = 12  # blocks of the image tower
    image_num_heads: int = 12  # heads of an attention of the image tower
    image_intermediate_size: int = 3072  # inner width of a feed-forward of the image tower
    image_activation: str = "quick_gelu"  # of the image tower's feed-forwards
    image_norm_eps: float = 1e-5  # what a norm of the image tower adds to the variance
    image_layer_scale: bool = False  # the same factors in the image tower
    projection_size: int = 512  # width of the vectors that are compared
    logit_bias: bool = False  # a learned number is added to the logits, as the sigmoid loss wants
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    image_attention_dropout: float = free(0.0)  # on the image tower's attention probabilities
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(self, "projection_size")
        self.text, self.image  # noqa: B018  each is checked when it is made

    @property
    def text(self) -> ClipTextConfig:
        """The text tower's config."""
        names = set(ClipTextConfig.field_names()) - {"projection_size"}
        return ClipTextConfig(**{name: getattr(self, name) for name in names})

    @property
    def image(self) -> ClipVisionConfig:
        """The image tower's config."""
        names = set(ClipVisionConfig.field_names()) - {"projection_size"}
        own = {name: f"image_{name}" if hasattr(self, f"image_{name}") else name for name in names}
        return ClipVisionConfig(**{name: getattr(self, field) for name, field in own.items()})


class Clip(TwoTowers):
    Config = ClipConfig

    def __init__(self, config: ClipConfig) -> None:
        c = config
        super().__init__(
            c,
            ClipText(c.text),
            ClipVision(c.image),
            text_projection=nn.Linear(c.hidden_size, c.projection_size, bias=False),
            image_projection=nn.Linear(c.image_hidden_size, c.projection_size, bias=False),
            logit_bias=c.logit_bias,
        )
