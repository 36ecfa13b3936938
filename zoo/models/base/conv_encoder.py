"""An image tower made of convolutions."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from zoo.layers.convolution import ConvStack, Grid, NewGrid, encoded_grid
from zoo.layers.outputs import Encoded
from zoo.layers.trace import Trace, Wanted
from zoo.models.base.config import free
from zoo.models.base.image_encoder import ImageEncoder, PictureConfig, check_pixels


@dataclass(frozen=True, kw_only=True)
class ConvConfig(PictureConfig):
    """The base of configs of convolutional towers."""

    num_channels: int = 3  # of a picture
    image_size: int = free(224)  # height and width of the pictures that it is trained on; it reads others too

    @property
    def channels(self) -> int:
        return self.num_channels


class ConvEncoder(ImageEncoder):
    """A stem, blocks, and what stands behind them; the cells of the last grid are averaged."""

    stem: nn.Module
    encoder: ConvStack
    top: nn.Module

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode pictures of any size: (batch, 3, height, width), normalized as the model's `Images` do.

        Cells stand row by row, in hidden states too: what enters the first block, then what leaves each.
        """
        trace = Trace(output_hidden_states, output_attentions)
        return encoded_grid(self.grid(pixel_values, trace), trace)

    def grid(self, pixel_values: Grid, trace: Trace | None = None) -> NewGrid:
        """The last grid, (batch, hidden, rows, columns)."""
        x = self.stem(check_pixels(pixel_values, self.config.num_channels, dtype=self.dtype))
        return self.top(self.encoder(x, trace or Trace()))
