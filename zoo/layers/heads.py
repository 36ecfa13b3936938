"""Prediction heads that several families' checkpoints carry."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from zoo.layers.feed_forward import activation


class MaskedLMHead(nn.Module):
    """``norm(act(W h + b)) Eᵀ + bias``: BERT's word predictor, with E the token table it is tied to.

    The table is handed over at each call and stored nowhere here, so the tie survives loading, saving and ``.to()``. ``tied=False``: a
    decoder matrix of its own instead. ``output_size``: the table's width (ALBERT: embedding_size).
    """

    def __init__(
        self, hidden_size: int, output_size: int, vocab_size: int, activation_name: str, norm_eps: float, *, tied: bool = True
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, output_size)
        self.norm = nn.LayerNorm(output_size, norm_eps)
        self.decoder = None if tied else nn.Linear(output_size, vocab_size, bias=False)
        self.bias = nn.Parameter(Tensor(vocab_size))
        self.activation = activation(activation_name)

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """(..., hidden) and the token table (vocabulary, output size) -> (..., vocabulary)."""
        x = self.norm(self.activation(self.dense(hidden)))
        return F.linear(x, table if self.decoder is None else self.decoder.weight, self.bias)


class TableHead(nn.Module):
    """``E h + bias``: word scores straight from the states, with E the token table that is handed over (XLM). ``tied=False``: a matrix of
    its own instead.
    """

    def __init__(self, hidden_size: int, vocab_size: int, *, tied: bool = True) -> None:
        super().__init__()
        self.decoder = None if tied else nn.Linear(hidden_size, vocab_size, bias=False)
        self.bias = nn.Parameter(Tensor(vocab_size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.bias.zero_()

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """(..., hidden) and the token table (vocabulary, hidden) -> (..., vocabulary)."""
        return F.linear(hidden, table if self.decoder is None else self.decoder.weight, self.bias)


class AnswerHead(nn.Module):
    """``W_2 norm(gelu(W_1 x + b)) + b'``: ViLBERT's and LXMERT's classifier over answers."""

    def __init__(self, input_size: int, hidden_size: int, num_labels: int, norm_eps: float, activation_name: str = "gelu") -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, norm_eps)
        self.output = nn.Linear(hidden_size, num_labels)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        """(..., input) -> (..., labels)."""
        return self.output(self.norm(self.activation(self.dense(x))))


class TransformHead(nn.Module):
    """``W_2 norm(act(W_1 x + b)) + b'`` at the input's own width: MMF's task head, BERT's transform before a Linear."""

    def __init__(self, input_size: int, num_labels: int, norm_eps: float, activation_name: str) -> None:
        super().__init__()
        self.transform = nn.Linear(input_size, input_size)
        self.norm = nn.LayerNorm(input_size, norm_eps)
        self.output = nn.Linear(input_size, num_labels)
        self.activation = activation(activation_name)

    def forward(self, x: Tensor) -> Tensor:
        """(..., input) -> (..., labels)."""
        return self.output(self.norm(self.activation(self.transform(x))))


class ScaledLinear(nn.Module):
    """``gain · V / |V| x + b`` with one gain for the whole matrix and its Frobenius norm: weight norm over all dimensions at once."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(Tensor(output_size, input_size))
        self.gain = nn.Parameter(Tensor(1).squeeze(0))
        self.bias = nn.Parameter(Tensor(output_size))

    def init_parameters(self, std: float, generator: Generator | None = None) -> None:
        self.direction.normal_(0, std, generator=generator)
        self.gain.copy_(self.direction.norm())
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(..., input) -> (..., output)."""
        return F.linear(x, self.direction * (self.gain / self.direction.norm()), self.bias)


class ScaledHead(nn.Module):
    """``S_2 dropout(relu(S_1 x))`` with both maps under weight norm: vilbert_beta's classifier over answers."""

    def __init__(self, input_size: int, hidden_size: int, num_labels: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dense = ScaledLinear(input_size, hidden_size)
        self.output = ScaledLinear(hidden_size, num_labels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., input) -> (..., labels)."""
        return self.output(self.dropout(F.relu(self.dense(x))))


class RegionHead(nn.Module):
    """``W_2 norm(act(W_1 h + b)) + b'``: what a masked region was, as classes of the detector or as its feature."""

    def __init__(self, hidden_size: int, target_size: int, activation_name: str, norm_eps: float) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, norm_eps)
        self.decoder = nn.Linear(hidden_size, target_size)
        self.activation = activation(activation_name)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., hidden) -> (..., target)."""
        return self.decoder(self.norm(self.activation(self.dense(hidden))))


class RegionToPhraseHead(nn.Module):
    """``(W_q h_phrase) · (W_k h_region) / sqrt(head size)``: how well each region fits each phrase; one head of attention, no value."""

    def __init__(self, hidden_size: int, head_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden_size, head_size)
        self.key = nn.Linear(hidden_size, head_size)
        self.scale = head_size**-0.5

    def forward(self, phrases: Tensor, regions: Tensor) -> Tensor:
        """(batch, phrases, hidden), (batch, regions, hidden) -> (batch, phrases, regions)."""
        return torch.einsum("bph,brh->bpr", self.query(phrases), self.key(regions)) * self.scale


class ClassificationHead(nn.Module):
    """``W' dropout(act(W x + b)) + b'``: a classifier with a layer of its own (ELECTRA: GELU)."""

    def __init__(self, hidden_size: int, num_labels: int, activation_name: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.output = nn.Linear(hidden_size, num_labels)
        self.activation = activation(activation_name)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden) -> (..., labels)."""
        return self.output(self.dropout(self.activation(self.dense(x))))
