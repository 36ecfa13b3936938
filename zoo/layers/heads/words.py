"""Heads that predict words through the token table."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.layers.feed_forward import activation


class MaskedLMHead(nn.Module):
    """``norm(act(W h + b)) Eᵀ + bias``: BERT's word predictor, with E the token table it is tied
    to.

    The table is handed over at each call and stored nowhere here, so the tie survives loading,
    saving and ``.to()``. ``tied=False``: a decoder matrix of its own instead. ``output_size``: the
    table's width (ALBERT: embedding_size).
    """

    def __init__(
        self,
        hidden_size: int,
        output_size: int,
        vocab_size: int,
        activation_name: str,
        norm_eps: float,
        *,
        tied: bool = True,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, output_size)
        self.norm = nn.LayerNorm(output_size, norm_eps)
        self.decoder = None if tied else nn.Linear(output_size, vocab_size, bias=False)
        self.bias = nn.Parameter(Tensor(vocab_size))
        self.activation = activation(activation_name)

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "vocabulary output_size"]
    ) -> Float[Tensor, "*rows vocabulary"]:
        x = self.norm(self.activation(self.dense(hidden)))  # eq: masked-lm
        return F.linear(x, table if self.decoder is None else self.decoder.weight, self.bias)  # eq: masked-lm


class WordPredictorSizes(Protocol):
    """What `masked_lm_of` reads from a config; most text models' configs have these fields."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def tie_word_embeddings(self) -> bool: ...


def masked_lm_of(c: WordPredictorSizes, embedding_size: int | None = None) -> MaskedLMHead:
    """`MaskedLMHead` at the sizes of a config; ``embedding_size``: of the token table where it is
    narrower than the model.
    """
    width = c.hidden_size if embedding_size is None else embedding_size
    return MaskedLMHead(c.hidden_size, width, c.vocab_size, c.activation, c.norm_eps, tied=c.tie_word_embeddings)


class TableHead(nn.Module):
    """``E h + bias``: word scores straight from the states, with E the token table that is handed
    over (XLM). ``tied=False``: a matrix of its own instead.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, tied: bool = True) -> None:
        super().__init__()
        self.decoder = None if tied else nn.Linear(hidden_size, vocab_size, bias=False)
        self.bias = nn.Parameter(Tensor(vocab_size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(  # eq: table
        self, hidden: Float[Tensor, "*rows hidden"], table: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "*rows vocabulary"]:
        return F.linear(hidden, table if self.decoder is None else self.decoder.weight, self.bias)
