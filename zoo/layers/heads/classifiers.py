"""Classifiers with a layer of their own before the labels."""

from __future__ import annotations

from jaxtyping import Float
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from zoo.layers.feed_forward import activation


class ClassificationHead(nn.Module):
    """``W' dropout(act(W x + b)) + b'``: a classifier with a layer of its own (ELECTRA: GELU), as wide as
    its input unless ``inner_size`` says otherwise.
    """

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        activation_name: str,
        dropout: float = 0.0,
        inner_size: int | None = None,
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, inner_size or hidden_size)
        self.output = nn.Linear(inner_size or hidden_size, num_labels)
        self.activation = activation(activation_name)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*rows hidden"]) -> Float[Tensor, "*rows labels"]:
        return self.output(self.dropout(self.activation(self.dense(x))))  # eq: label


class AnswerHead(nn.Module):
    """``W_2 norm(gelu(W_1 x + b)) + b'``: ViLBERT's and LXMERT's classifier over answers."""

    def __init__(
        self, input_size: int, hidden_size: int, num_labels: int, norm_eps: float, activation_name: str = "gelu"
    ) -> None:
        super().__init__()
        self.dense = nn.Linear(input_size, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, norm_eps)
        self.output = nn.Linear(hidden_size, num_labels)
        self.activation = activation(activation_name)

    def forward(self, x: Float[Tensor, "*rows input_size"]) -> Float[Tensor, "*rows labels"]:
        return self.output(self.norm(self.activation(self.dense(x))))  # eq: answers


class TransformHead(nn.Module):
    """``W_2 norm(act(W_1 x + b)) + b'`` at the input's own width: MMF's task head, BERT's transform
    before a Linear.
    """

    def __init__(self, input_size: int, num_labels: int, norm_eps: float, activation_name: str) -> None:
        super().__init__()
        self.transform = nn.Linear(input_size, input_size)
        self.norm = nn.LayerNorm(input_size, norm_eps)
        self.output = nn.Linear(input_size, num_labels)
        self.activation = activation(activation_name)

    def forward(self, x: Float[Tensor, "*rows input_size"]) -> Float[Tensor, "*rows labels"]:
        return self.output(self.norm(self.activation(self.transform(x))))


class ScaledLinear(nn.Module):
    """``gain · V / |V| x + b`` with one gain for the whole matrix and its Frobenius norm: weight
    norm over all dimensions at once.
    """

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(Tensor(output_size, input_size))
        self.gain = nn.Parameter(Tensor(1).squeeze(0))
        self.bias = nn.Parameter(Tensor(output_size))

    def init_parameters(self, std: float, generator: Generator | None = None) -> None:
        self.direction.normal_(0, std, generator=generator)
        self.gain.copy_(self.direction.norm())
        self.bias.zero_()

    def forward(self, x: Float[Tensor, "*rows input_size"]) -> Float[Tensor, "*rows output_size"]:
        return F.linear(x, self.direction * (self.gain / self.direction.norm()), self.bias)


class ScaledHead(nn.Module):
    """``S_2 dropout(relu(S_1 x))`` with both maps under weight norm: vilbert_beta's classifier over
    answers.
    """

    def __init__(self, input_size: int, hidden_size: int, num_labels: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.dense = ScaledLinear(input_size, hidden_size)
        self.output = ScaledLinear(hidden_size, num_labels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*rows input_size"]) -> Float[Tensor, "*rows labels"]:
        return self.output(self.dropout(F.relu(self.dense(x))))
