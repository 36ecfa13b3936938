"""ViT: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), and DeiT without its distillation token (Touvron et
al., 2021), which is the same model trained in another way.

    x_0 = [class; W p_1 + b; ...; W p_n + b] + E             a picture is cut into n squares of P x P pixels
    a   = x + MHA(LN(x))
    x'  = a + W_2 gelu(W_1 LN(a))
    h   = LN(x_L)                                            every position goes through the final norm
    u   = h_class,  or  tanh(W_p h_class + b_p)              with a pooler

Beside CLIP's vision tower (`zoo.models.clip_towers`): the patches have a bias, no norm stands ahead of the blocks, the
final norm covers all positions and not the pooled one alone, and the activation is the exact GELU.

Traps: the pooler is the representation layer of pre-training on ImageNet-21k; fine-tuned models have none, and their
classifier reads h_class itself. The authors' norms add 1e-6 to the variance, and the Hugging Face library's configs of
their checkpoints 1e-12. A picture's edge that is narrower than a patch is left out. The authors interpolate positions
bilinearly when they fine-tune at a higher resolution; here, as in the libraries, it is bicubic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers import Encoded, FirstTokenPooler, Pooler, Run, Stack, Wanted, bert_block_of, pre_norm
from zoo.layers.feed_forward import check_activation
from zoo.models.base.config import check_heads, check_positive, free
from zoo.models.base.image_encoder import PatchConfig, PatchEncoder, PatchTokens


@dataclass(frozen=True, kw_only=True)
class ViTConfig(PatchConfig):
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-6
    pooler_size: int | None = (
        None  # width of a linear layer and tanh behind the class token's state; None: no such layer
    )
    dropout: float = free(0.0)
    attention_dropout: float = free(0.0)
    initializer_range: float = free(0.02)

    def check(self) -> None:
        check_positive(self, "hidden_size", "num_layers", "num_heads", "intermediate_size")
        self.check_patches()
        check_heads(self.hidden_size, self.num_heads)
        check_activation(self.activation)
        if self.pooler_size is not None:
            check_positive(self, "pooler_size")


class VitEmbeddings(PatchTokens):
    """``[class; W patch_1 + b; ...; W patch_n + b] + position``, the patches row by row."""

    roles = {"position": "position-embedding"}

    def __init__(self, c: ViTConfig) -> None:
        super().__init__(c, c.hidden_size, bias=True)
        self.dropout = nn.Dropout(c.dropout)

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """The class token, as small as the positions."""
        nn.init.normal_(self.class_token, std=std, generator=generator)

    def forward(
        self, pixel_values: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch positions hidden"]:
        return self.dropout(self.placed(pixel_values))  # eq: patches


class ViT(PatchEncoder):
    Config = ViTConfig
    embeddings: VitEmbeddings

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = VitEmbeddings(c)
        self.encoder = Stack([bert_block_of(c, pre_norm) for _ in range(c.num_layers)])  # eq: block
        self.norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.pooler = FirstTokenPooler(c.hidden_size, c.pooler_size) if c.pooler_size else Pooler()  # eq: pooled

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode pictures: (batch, 3, image_size, image_size), resized and normalized."""
        x = self.embeddings(pixel_values)  # (batch, 1 + patches, hidden)
        run = Run(x, None, None, output_hidden_states, output_attentions)
        return run.encoded(run.through(self.encoder, norm=self.norm), self.pooler)  # eq: final

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read."""
        return {"image": config.hidden_size, "pooled": config.pooler_size or config.hidden_size}
