"""Token, position and segment embeddings, with a norm and, where the table is narrower than the
model, a projection (factorised).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Integral
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import InputError, unknown
from zoo.layers.padding import at_hand


def check_ids(ids: Tensor, table: int, name: str) -> Tensor:
    """The ids as a table takes them: integers of shape (batch, length) inside it, int64 where they
    are narrower than int32. Others are refused; values are not looked at under compile or on meta.
    """
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        got = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(f"{name} must hold integers, got {got}")
    if ids.dim() != 2:
        raise InputError(f"{name} must be (batch, length), got {tuple(ids.shape)}")
    if ids.dtype not in (torch.int64, torch.int32):
        ids = ids.long()
    if at_hand(ids):  # on an accelerator the look-up itself asserts, without a wait
        low, high = (int(v) for v in ids.aminmax())
        if low < 0 or high >= table:
            raise InputError(f"{name} must lie in 0..{table - 1}, got {low if low < 0 else high}")
    return ids


def check_embeds(embeds: Tensor, size: int, name: str = "inputs_embeds") -> None:
    """Refuse what is not floats of shape (batch, length, size)."""
    if not isinstance(embeds, Tensor) or not embeds.is_floating_point():
        got = embeds.dtype if isinstance(embeds, Tensor) else type(embeds).__name__
        raise InputError(f"{name} must be a float tensor, got {got}")
    if embeds.dim() != 3 or embeds.shape[2] != size:
        raise InputError(f"{name} must be (batch, length, {size}), got {tuple(embeds.shape)}")


class TextEmbeddings(nn.Module):
    """``dropout(norm(token[t] + segment[s] + position[p]))``, then a projection where
    ``projection`` is given.

    ``num_segments`` = 0: no segment table. ``projection``: embedding_size -> hidden_size (ALBERT,
    ELECTRA small).
    """

    roles = {
        "token": "token-embedding",
        "position": "position-embedding",
        "segment": "segment-embedding",
        "norm": "embedding-norm",
        "projection": "embedding-projection",
    }

    first_position: int = 0  # where the first token stands, positions not being given; behind a prefix it stands later

    def __init__(
        self,
        vocab_size: int,
        embedding_size: int,
        max_positions: int,
        num_segments: int,
        norm: nn.Module,
        *,
        dropout: float = 0.0,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, embedding_size)
        self.position = nn.Embedding(max_positions, embedding_size)
        self.segment = nn.Embedding(num_segments, embedding_size) if num_segments else None
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.projection = projection

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
    ) -> Float[Tensor, "batch length hidden"]:
        """inputs_embeds: the token part, in place of input_ids. Segments default to 0, positions to 0, 1, ..."""
        tokens = self.tokens(input_ids, inputs_embeds)  # (batch, length, embedding)
        x = tokens + self.segments(token_type_ids, tokens) + self.positions(position_ids, tokens)  # eq: text
        x = self.dropout(self.norm(x))  # eq: text
        return x if self.projection is None else self.projection(x)  # eq: projection

    def tokens(
        self, input_ids: Int[Tensor, "batch length"] | None, inputs_embeds: Float[Tensor, "batch length size"] | None
    ) -> Float[Tensor, "batch length size"]:
        """The token part, from ids or as given."""
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError(
                f"give exactly one of input_ids and inputs_embeds, got {'neither' if input_ids is None else 'both'}"
            )
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.token(check_ids(input_ids, self.token.num_embeddings, "input_ids"))
        else:
            check_embeds(inputs_embeds, self.token.embedding_dim)
        if inputs_embeds.shape[1] == 0:
            raise InputError("the text has no token: its length is 0; give one at least, padding if need be")
        limit = self.position.num_embeddings - self.first_position
        if inputs_embeds.shape[1] > limit:
            raise InputError(
                f"the text is {inputs_embeds.shape[1]} tokens long; this model has {limit} positions: cut it or split "
                "it"
            )
        return inputs_embeds

    def segments(
        self, token_type_ids: Int[Tensor, "batch length"] | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "*grid hidden"] | float:
        """The segment part, of each token or of all."""
        if self.segment is None:
            if token_type_ids is None:
                return 0.0
            same_shape(token_type_ids, tokens, "token_type_ids")
            if not _all_zero(token_type_ids):
                raise InputError("this model has no segments; leave token_type_ids out")
            return 0.0
        if token_type_ids is None:
            return self.segment.weight[0]
        same_shape(token_type_ids, tokens, "token_type_ids")
        return self.segment(check_ids(token_type_ids, self.segment.num_embeddings, "token_type_ids"))

    def positions(
        self, position_ids: Int[Tensor, "*#batch length"] | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "*#batch length hidden"]:
        """The position part, of each text or of all."""
        if position_ids is None:
            return self.position.weight[self.first_position : self.first_position + tokens.shape[1]]
        if isinstance(position_ids, Tensor) and position_ids.dim() == 1:
            position_ids = position_ids[None]
        position_ids = check_ids(position_ids, self.position.num_embeddings, "position_ids")
        if position_ids.shape[0] != 1 or position_ids.shape[1] != tokens.shape[1]:
            same_shape(position_ids, tokens, "position_ids")
        return self.position(position_ids)


class EmbeddingSizes(Protocol):
    """What `text_embeddings_of` reads from a config; most text models' configs have these fields."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def max_positions(self) -> int: ...
    @property
    def num_segments(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def dropout(self) -> float: ...


def text_embeddings_of(c: EmbeddingSizes) -> TextEmbeddings:
    """BERT's embeddings at the sizes of a config."""
    norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
    return TextEmbeddings(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)


class FactorizedTable(nn.Embedding):
    """``(E P)[t]``: a narrow table and what widens it. `table` is the product, which tied decoders
    read.
    """

    def __init__(self, num_embeddings: int, size: int, output_size: int) -> None:
        super().__init__(num_embeddings, size)
        self.projection = nn.Linear(size, output_size, bias=False)
        self.embedding_dim = output_size  # as seen from outside

    @property
    def table(self) -> Float[Tensor, "vocabulary output_size"]:
        return self.projection(self.weight)  # eq: factorized

    def forward(self, input_ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids output_size"]:
        return self.projection(super().forward(input_ids))  # eq: factorized


class NarrowTable(nn.Embedding):
    """A table whose rows are widened later, by a projection that stands elsewhere."""

    widen: nn.Linear

    def __init__(self, num_embeddings: int, size: int, projection: nn.Linear) -> None:
        super().__init__(num_embeddings, size)
        object.__setattr__(self, "widen", projection)  # borrowed, not registered twice

    @property
    def table(self) -> Float[Tensor, "vocabulary output_size"]:
        """As a head of full width reads it."""
        return self.weight @ self.widen.weight.T


def same_shape(ids: Tensor, tokens: Tensor, name: str, what: str = "text") -> None:
    """Refuse ids whose (batch, length) is not the text's, or the regions'."""
    if not isinstance(ids, Tensor):
        raise InputError(f"{name} must be a tensor of integers, got {type(ids).__name__}")
    if tuple(ids.shape) != tuple(tokens.shape[:2]):
        raise InputError(
            f"{name} must be (batch, length) = {tuple(tokens.shape[:2])} like the {what}, got {tuple(ids.shape)}"
        )


def _all_zero(ids: Tensor) -> bool:
    return torch.compiler.is_compiling() or ids.device.type == "meta" or not bool(ids.any())


def check_features(features: Tensor, batch: int, width: int, name: str) -> None:
    """Refuse features that are not finite floats of shape (batch, regions, width). Values are looked
    at on the CPU, not under compile.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        raise InputError(
            f"{name} must be a float tensor, got "
            f"{features.dtype if isinstance(features, Tensor) else type(features).__name__}"
        )
    if features.dim() != 3 or features.shape[0] != batch or features.shape[2] != width:
        hint = (
            ""
            if features.dim() != 3 or features.shape[2] == width
            else f": this model was trained on features {width} wide"
        )
        raise InputError(
            f"{name} must be (batch, regions, width) = ({batch}, any, {width}), got {tuple(features.shape)}{hint}"
        )
    if not at_hand(features):
        return
    for end in features.detach().aminmax():  # both are NaN where one value is
        if not bool(end.isfinite()):
            raise InputError(
                f"{name} must be finite, also at padding, got {end.item()}; look at where the regions come from"
            )


class RegionEmbeddings(nn.Module):
    """``norm(W_f f + W_l l)``: a region's feature and its box; ``added`` stands inside the norm too, as
    segments and positions.
    """

    def __init__(self, visual_size: int, box_size: int, hidden_size: int, norm_eps: float, dropout: float) -> None:
        super().__init__()
        self.features = nn.Linear(visual_size, hidden_size)
        self.boxes = nn.Linear(box_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions visual_size"],
        boxes: Float[Tensor, "batch regions box_size"],
        added: Float[Tensor, "*grid hidden"] | float = 0.0,
    ) -> Float[Tensor, "batch regions hidden"]:
        dtype = self.features.weight.dtype
        x = self.features(features.to(dtype)) + self.boxes(boxes.to(dtype)) + added  # eq: regions
        return self.dropout(self.norm(x))  # eq: regions


class RegionSizes(Protocol):
    """What `check_boxes` reads from a config."""

    @property
    def visual_size(self) -> int: ...
    @property
    def box_size(self) -> int: ...


BOX_FORMS = {
    4: "x1, y1, x2, y2 as shares of the picture",
    5: "x1, y1, x2, y2 as shares of the picture and the share of its area",
    7: "x1, y1, x2, y2, width and height as shares of the picture and the product of the last two",
}


def check_boxes(features: Tensor, boxes: Tensor | None, batch: int, config: RegionSizes) -> Tensor:
    """Refuse features and boxes of another width than the config's, or not one box for each region ->
    the boxes.
    """
    if boxes is None:
        raise InputError("this model reads boxes: give visual_boxes beside visual_features")
    check_features(features, batch, config.visual_size, "visual_features")
    if isinstance(boxes, Tensor) and boxes.dim() == 3 and boxes.shape[2] != config.box_size:
        form = f", {BOX_FORMS[config.box_size]}" if config.box_size in BOX_FORMS else ""
        raise InputError(
            f"visual_boxes must be {config.box_size} numbers for each region{form}, got {boxes.shape[2]}; "
            "Regions(...).for_model(model.config) makes them"
        )
    check_features(boxes, batch, config.box_size, "visual_boxes")
    if boxes.shape[1] != features.shape[1]:
        raise InputError(
            f"visual_boxes must be one for each of the {features.shape[1]} regions of visual_features, got "
            f"{boxes.shape[1]}"
        )
    return boxes


Languages = Int[Tensor, "_batch _length"] | str | int | Sequence[str | int]


class LanguageEmbedding(nn.Embedding):
    """A vector for each language; ``names`` in the order of their ids, empty where only ids are
    known. ``std``: of its first values, where it differs from other tables'.
    """

    def __init__(self, num_languages: int, size: int, names: Sequence[str] = (), std: float | None = None) -> None:
        super().__init__(num_languages, size)
        self.names, self.std = tuple(names), std

    def init_parameters(self, std: float, generator: torch.Generator | None = None) -> None:
        """A normal cut at two deviations, like every table's."""
        width = std if self.std is None else self.std
        nn.init.trunc_normal_(self.weight, 0, width, -2 * width, 2 * width, generator=generator)

    def forward(  # type: ignore[override]
        self, language_ids: Languages | None, tokens: Float[Tensor, "batch length size"]
    ) -> Float[Tensor, "batch length size"]:
        """``language_ids``: for each token, or a name or id, or one for each text.

        Raises InputError where none is given, UnknownNameError for a name that is not among
        ``names``.
        """
        return super().forward(self.ids(language_ids, tokens))

    def ids(
        self, language_ids: Languages | None, tokens: Float[Tensor, "batch length size"]
    ) -> Int[Tensor, "batch length"]:
        """Ids from whatever form they were given in."""
        batch, length = tokens.shape[:2]
        if language_ids is None:
            raise InputError(
                "this model tells languages apart: pass language_ids, (batch, length) int, or a language for all texts "
                "or one for each. "
                f"It knows {self.known}"
            )
        if isinstance(language_ids, Tensor):
            same_shape(language_ids, tokens, "language_ids")
            return check_ids(language_ids, self.num_embeddings, "language_ids")
        each = [language_ids] if isinstance(language_ids, (str, int)) else list(language_ids)
        if len(each) not in (1, batch):
            raise InputError(
                f"language_ids must be one language, or one for each of the {batch} texts, got {len(each)}"
            )
        rows = torch.tensor([self.number(one) for one in each], device=tokens.device)
        return rows[:, None].expand(batch, length)

    def number(self, language: str | int) -> int:
        """The id of a language."""
        if isinstance(language, str):
            if language not in self.names:
                hint = f"(this model knows {self.known})"
                raise unknown("language", language, self.names, hint)
            return self.names.index(language)
        if not isinstance(language, Integral):
            raise InputError(
                "language_ids must be a tensor (batch, length), or a name or an id for all texts or for each, got "
                f"{language!r}"
            )
        if not 0 <= language < self.num_embeddings:
            raise InputError(
                f"language_ids must lie in 0..{self.num_embeddings - 1}, got {language}; this model knows {self.known}"
            )
        return int(language)

    @property
    def known(self) -> str:
        """The languages, for messages."""
        if not self.names:
            return f"{self.num_embeddings} languages by their ids 0..{self.num_embeddings - 1}"
        return ", ".join(f"{number} {name}" for number, name in enumerate(self.names))


def ignore_languages(language_ids: object) -> None:
    """Say, where languages were given, that a model without a language embedding does not look at
    them.
    """
    if language_ids is not None and not torch.compiler.is_compiling():
        warnings.warn("this model has no language embedding; language_ids are ignored", UserWarning, stacklevel=4)


class SinusoidalPositions(nn.Module):
    """``sin(p / 10000^(2k/d))`` in column 2k and the cosine of the same in column 2k + 1: the
    original Transformer's table.

    Not trained, but stored under ``weight`` like a learned table, as the checkpoints of XLM do:
    what a file holds is what is used.
    """

    weight: Tensor

    def __init__(self, max_positions: int, size: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(max_positions, size))

    @property
    def num_embeddings(self) -> int:
        return self.weight.shape[0]

    def init_parameters(self, std: float, generator: object = None) -> None:
        """Fill the table; nothing is drawn."""
        rows, size = self.weight.shape
        position = torch.arange(rows, dtype=torch.float64, device=self.weight.device)[:, None]
        column = torch.arange(size, dtype=torch.float64, device=self.weight.device)
        angle = position / 10_000 ** (2 * (column // 2) / size)  # (rows, size)  # eq: sinusoidal
        self.weight.copy_(torch.where(column % 2 == 0, angle.sin(), angle.cos()))  # eq: sinusoidal

    def forward(self, position_ids: Int[Tensor, "#batch length"]) -> Float[Tensor, "#batch length size"]:
        return F.embedding(position_ids, self.weight)
