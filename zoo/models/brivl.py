"""BriVL (Huo et al., 2021; Fei et al., 2022), also called WenLan: an EfficientNet and a Chinese BERT, each with a few
blocks of its own behind it, contrasted by momentum.

    picture : b_i = W mean of 4 x 4 samples of the grid in box i + c             the boxes, the whole picture last
              x   = blocks(b_i / |b_i|),   image = W_2 relu(W_1 mean(x))
    text    : h   = BERT(tokens)                                                 padding is read
              y   = blocks(h_t / |h_t|),   text  = W_2 relu(W_1 mean(y))         padding is masked
    logits  = unit(image) unit(text)ᵀ / 0.07

Version 1 has a detector's boxes, version 2 the cells of a grid; the network is the same. The blocks are post-norm
with ReLU. A box from (x1, y1) to (x2, y2), in cells of a grid of w columns, is sampled at x = s u + t for u = ±3/4,
±1/4, with s = (x2 - x1) / (w - 1) and t = (x1 + x2 - w + 1) / (w - 1).

Traps: BERT is called without a mask, so how far a text is padded changes its vector; the authors pad to 80. The s and t
above are made for coordinates whose ends are the centers of the outer cells, and are read as if they were the outer
edges: boxes lie off their place. Boxes are in pixels of the picture after its resizing, which makes it square. There
are no positions among the boxes, so their order changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.images.boxes import GridBoxes
from zoo.errors import ConfigError, InputError
from zoo.layers import Stack, pool
from zoo.layers.attention import Attention
from zoo.layers.blocks import EncoderBlock
from zoo.layers.convolution import Grid
from zoo.layers.embeddings import check_features
from zoo.layers.feed_forward import FeedForward
from zoo.layers.outputs import Encoded
from zoo.layers.padding import Padding
from zoo.layers.run import Run
from zoo.layers.trace import Wanted
from zoo.models.align import AlignConfig
from zoo.models.base.config import check_heads, check_positive, free
from zoo.models.base.image_encoder import ImageEncoder
from zoo.models.base.model import Reading
from zoo.models.base.outputs import Towers
from zoo.models.base.two_towers import TEMPERATURE, TwoTowers
from zoo.models.bert import Bert, BertConfig
from zoo.models.efficientnet import EfficientNet
from zoo.registry.inputs import Input
from zoo.registry.variants import TEXT_INPUTS


@dataclass(frozen=True, kw_only=True)
class BrivlConfig(AlignConfig):
    vocab_size: int = 21_128
    width_multiplier: float = 1.6  # factor on the channels of every stage of the image tower
    depth_multiplier: float = 2.2  # factor on the blocks of every stage
    padding: Literal["same", "fixed"] = "same"  # of strides: TensorFlow's rule, or that for even sizes, always
    first_residual: bool = True  # a stage's first block has a residual where its shapes allow one
    top_size: int = 2048  # channels behind the last convolution: the width of boxes and of what is compared
    text_added_layers: int = 4  # blocks behind BERT
    text_added_heads: int = 4  # of their attention
    image_added_layers: int = 4  # blocks over the boxes
    image_added_heads: int = 4  # of their attention
    added_intermediate_size: int = 2048  # inner width of these blocks, in both towers
    box_samples: int = 4  # a box is sampled at this many places along each side
    box_grid: int = 6  # where no boxes are given: the cells along each side, and the whole picture; 0: boxes are needed
    path_dropout: float = free(0.0)  # share of pictures whose last block is skipped in training; less before it
    temperature: float = free(TEMPERATURE)  # that the logits are divided by; it is not learned
    image_size: int = free(456)  # height and width of the pictures that it is trained on; it reads others too

    def check(self) -> None:
        super().check()
        check_positive(self, "top_size", "text_added_layers", "image_added_layers", "added_intermediate_size")
        check_positive(self, "box_samples")
        check_heads(self.hidden_size, self.text_added_heads)
        check_heads(self.top_size, self.image_added_heads)
        if self.box_grid < 0 or self.temperature <= 0:
            raise ConfigError(
                f"box_grid={self.box_grid} must be at least 0 and temperature={self.temperature} be above 0"
            )


def added_blocks(c: BrivlConfig, width: int, layers: int, heads: int) -> Stack:
    """The blocks behind a tower: torch's encoder layers, which are post-norm and have a dropout inside too."""

    def block() -> EncoderBlock:
        return EncoderBlock(
            Attention(width, heads, dropout=c.dropout),
            FeedForward(width, c.added_intermediate_size, "relu", dropout=c.dropout),
            nn.LayerNorm(width),
            nn.LayerNorm(width),
            dropout=c.dropout,
        )

    return Stack([block() for _ in range(layers)])


class Projection(nn.Module):
    """``W_2 relu(W_1 x)``, with biases, into the width of what is compared."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        return self.second(torch.relu(self.first(x)))  # eq: projection


def mean(states: Float[Tensor, "batch positions size"], padding: Padding) -> Float[Tensor, "batch size"]:
    """The mean over real positions."""
    return pool(states, padding.real, "mean")


class BrivlText(Bert):
    """BERT without a mask, then blocks with one over its states of unit length."""

    def __init__(self, config: BertConfig, added: Stack) -> None:
        super().__init__(config)
        self.added = added

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode texts. What stands at padding is read by BERT's blocks and hidden from the others. Hidden states are
        those of BERT's blocks, then of the others.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        run = Run(x, None, None, output_hidden_states, output_attentions)
        x = F.normalize(run.through(self.encoder), dim=-1)  # eq: text
        run = run.onward(x, attention_mask, lengths)
        return run.encoded(run.through(self.added), mean)  # eq: text


class BrivlImage(ImageEncoder):
    """An EfficientNet, a vector for each box, and blocks over these."""

    inputs = ("pixel_values", "visual_boxes", "visual_mask")

    def __init__(self, config: BrivlConfig) -> None:
        super().__init__(config.image)
        c = config
        self.cells, self.samples = c.box_grid, c.box_samples
        self.backbone = EfficientNet(c.image)
        self.box = nn.Conv2d(c.top_size, c.top_size, 1)
        self.added = added_blocks(c, c.top_size, c.image_added_layers, c.image_added_heads)

    def forward(
        self,
        pixel_values: Float[Tensor, "batch channels height width"],
        visual_boxes: Float[Tensor, "batch boxes 4"] | None = None,
        visual_mask: Tensor | None = None,
        *,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Encoded:
        """Encode pictures. visual_boxes: x1, y1, x2, y2 in pixels, the whole picture among them; without them, the
        cells of a grid and the whole picture. States are those of boxes.
        """
        if visual_boxes is None:
            visual_boxes = self.grid_boxes(pixel_values)
        check_features(visual_boxes, len(pixel_values), 4, "visual_boxes")
        grid = self.backbone.grid(pixel_values)  # (batch, hidden, rows, columns)
        size = pixel_values.new_tensor(pixel_values.shape[:1:-1])  # width, height
        x = self.box_vectors(grid, visual_boxes.to(grid.dtype) / size.to(grid.dtype).repeat(2))
        run = Run(
            F.normalize(x, dim=-1), visual_mask, None, output_hidden_states, output_attentions, name="visual_mask"
        )
        return run.encoded(run.through(self.added), mean)  # eq: image

    def grid_boxes(self, pixel_values: Tensor) -> Float[Tensor, "batch boxes 4"]:
        """The cells of a grid, and the whole picture."""
        if not self.cells:
            raise InputError(
                "this model reads a detector's boxes: give visual_boxes, (batch, boxes, 4) in pixels, the whole "
                "picture last; or build it with box_grid=6, the cells of version 2"
            )
        boxes = GridBoxes(1, self.cells, self.cells**2 + 1).boxes().to(pixel_values.device)
        height, width = pixel_values.shape[2:]
        return (boxes * boxes.new_tensor([width, height, width, height])).expand(len(pixel_values), -1, -1)

    def box_vectors(self, grid: Grid, boxes: Float[Tensor, "batch boxes 4"]) -> Float[Tensor, "batch boxes hidden"]:
        """The mean of samples in each box, and a linear map of it; boxes in parts of the picture."""
        cells = boxes.new_tensor(grid.shape[:1:-1])  # columns, rows
        if not torch.compiler.is_compiling() and min(grid.shape[2:]) < 2:
            raise InputError(f"a grid of {grid.shape[2]} x {grid.shape[3]} cells has no boxes: give larger pictures")
        low, high = (boxes * cells.repeat(2)).unflatten(2, (2, 2)).unbind(2)  # (batch, boxes, 2)
        scale, shift = (high - low) / (cells - 1), (low + high - cells + 1) / (cells - 1)  # eq: box
        steps = (2 * torch.arange(self.samples, device=boxes.device, dtype=boxes.dtype) + 1) / self.samples - 1
        places = scale[..., None] * steps + shift[..., None]  # (batch, boxes, 2, samples)  # eq: box
        x, y = places.unbind(2)
        count = boxes.shape[1]
        where = torch.stack(
            [x[:, :, None].expand(-1, -1, self.samples, -1), y[..., None].expand(-1, -1, -1, self.samples)], -1
        )
        found = F.grid_sample(
            grid, where.flatten(1, 2), align_corners=False
        )  # (batch, hidden, boxes · samples, samples)
        found = found.unflatten(2, (count, self.samples)).mean((3, 4))  # (batch, hidden, boxes)  # eq: samples
        return self.box(found[..., None])[..., 0].mT  # the map of the mean is the mean of the map  # eq: samples


class Brivl(TwoTowers):
    Config = BrivlConfig
    inputs = (*TEXT_INPUTS, "pixel_values", "visual_boxes", "visual_mask")
    own_inputs = (
        Input(
            "visual_boxes",
            ("batch", "regions", "4"),
            "float",
            "boxes x1, y1, x2, y2 in pixels of the resized picture, the whole picture last; the cells of a grid and "
            "the whole picture where none are given",
        ),
        Input("visual_mask", ("batch", "regions"), "int or bool", "1/True = a real box", masks="regions"),
    )
    offers = {**TwoTowers.offers, "queued_keys": Reading(lambda e: e.image_embeds)}  # what its objective compares with
    exceptions = {"padding": "BERT is called without a mask: what stands at padding is read"}

    def __init__(self, config: BrivlConfig) -> None:
        c = config
        added = added_blocks(c, c.hidden_size, c.text_added_layers, c.text_added_heads)
        super().__init__(
            config,
            BrivlText(c.text, added),
            BrivlImage(c),
            text_projection=Projection(c.hidden_size, c.top_size),
            image_projection=Projection(c.top_size, c.top_size),
        )
        del self.logit_scale

    @property
    def scale(self) -> Float[Tensor, ""]:
        return torch.tensor(1 / self.config.temperature, dtype=torch.float64)

    def limit_scale(self, largest: float = 100.0) -> None:
        """Nothing: the temperature is not learned."""

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """Nothing beside the towers and projections."""

    def forward(
        self,
        input_ids: Int[Tensor, "texts length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "texts length"] | None = None,
        position_ids: Int[Tensor, "*#texts length"] | None = None,
        inputs_embeds: Float[Tensor, "texts length embedding"] | None = None,
        pixel_values: Float[Tensor, "pictures channels height width"] | None = None,
        visual_boxes: Float[Tensor, "pictures boxes 4"] | None = None,
        visual_mask: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Towers:
        """Encode texts, pictures, or both. visual_boxes: (pictures, boxes, 4), x1, y1, x2, y2 in pixels; visual_mask:
        1/True = a real box. attention_mask, lengths: what the blocks behind BERT read.
        """
        words = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
            "lengths": lengths,
        }
        pictures = {"pixel_values": pixel_values, "visual_boxes": visual_boxes, "visual_mask": visual_mask}
        wanted = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        return self.compared(words, pictures, wanted)
