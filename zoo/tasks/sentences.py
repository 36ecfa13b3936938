"""Sentence embeddings: one vector for a text, and many texts at once as sentence-transformers
encodes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.batches import like_lengths, windows
from zoo.errors import ConfigError, InputError
from zoo.layers.feed_forward import activation
from zoo.layers.pooler import pool
from zoo.models.base.model import Model
from zoo.models.base.outputs import TaskOutput
from zoo.registry.tasks import TaskSpec
from zoo.tasks.base import TaskModel
from zoo.tokenization import Tokenizer

EMBEDDING_HEAD = "sentence_embedding"


class EmbeddingDense(nn.Module):
    """``f(W v + b)``, plus ``v`` (or a linear map of it to the new width) where it is residual."""

    def __init__(self, width: int, size: int, activation_name: str, bias: bool, residual: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, size, bias=bias)
        self.activation, self.is_residual = activation(activation_name), residual
        if residual and width != size:
            self.residual = nn.Linear(width, size, bias=False)

    def forward(self, vector: Tensor) -> Tensor:
        out = self.activation(self.linear(vector))
        if not self.is_residual:
            return out
        return out + (self.residual(vector) if hasattr(self, "residual") else vector)


class EmbeddingNorm(nn.Module):
    """Layer norm of a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, vector: Tensor) -> Tensor:
        normed: Tensor = self.norm(vector)
        return normed


def embedding_layers(written: Any, width: int) -> nn.ModuleList:
    """What the option ``layers`` of sentence-embedding lists: ``{"kind": "dense", "size": 256,
    "activation": "tanh", "bias": True, "residual": False}``, ``{"kind": "norm"}`` and ``{"kind":
    "dropout", "rate": 0.1}``, of which all but kind and size may be left out.
    """
    layers = nn.ModuleList()
    known = {"dense": {"size", "activation", "bias", "residual"}, "norm": set[str](), "dropout": {"rate"}}
    if not isinstance(written, list | tuple):
        raise ConfigError(f"layers must be a list of layers, got {written!r}")
    for layer in written:
        kind = layer.get("kind") if isinstance(layer, Mapping) else None
        if not isinstance(kind, str) or kind not in known or set(layer) - known[kind] - {"kind"}:
            raise ConfigError(
                f"a layer of a sentence embedding is a dict with the kind {', '.join(known)}; dense with size, "
                f"activation, bias and residual, dropout with rate; got {layer!r}"
            )
        if kind == "dense":
            size, bias, residual = layer.get("size"), layer.get("bias", True), layer.get("residual", False)
            if type(size) is not int or size < 1 or type(bias) is not bool or type(residual) is not bool:
                raise ConfigError(f"a dense layer has a size of at least 1, bias and residual are bool; got {layer!r}")
            layers.append(EmbeddingDense(width, size, layer.get("activation", "identity"), bias, residual))
            width = size
        elif kind == "norm":
            layers.append(EmbeddingNorm(width))
        else:
            rate = layer.get("rate", 0.0)
            if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
                raise ConfigError(f"the rate of a dropout must lie between 0 and 1, got {rate!r}")
            layers.append(nn.Dropout(rate))
    return layers


class SentenceEmbedding(TaskModel):
    """One vector for a text: its token states pooled over real tokens, through the ``layers`` that the
    option lists, then at length one where ``normalize`` says so.
    """

    POOLINGS = ("mean", "max", "cls")

    @classmethod
    def heads_from(cls, spec: TaskSpec, model_class: Any) -> tuple[str, ...]:
        return (EMBEDDING_HEAD,)

    @classmethod
    def build(cls, model: Model, options: Mapping[str, Any], task: str) -> TaskModel:
        if options["pooling"] not in cls.POOLINGS:
            raise ConfigError(f"pooling must be one of {', '.join(cls.POOLINGS)}, got {options['pooling']!r}")
        layers = embedding_layers(options["layers"], model.config.hidden_size)
        return cls(model, {EMBEDDING_HEAD: layers} if len(layers) else {}, options)

    def forward(self, *inputs: Tensor, **named: Any) -> TaskOutput:
        """-> embedding (batch, hidden), or as wide as the last dense layer."""
        given = self.given(inputs, named)
        encoded = self.model(**given)
        real = self.model.padding_of("text", given, encoded, pack=False).real
        vector = pool(encoded.last_hidden_state, real, self.options["pooling"])  # eq: sentence
        if EMBEDDING_HEAD in self.heads:
            for layer in self.heads[EMBEDDING_HEAD]:  # type: ignore[attr-defined]
                vector = layer(vector)
        return TaskOutput(  # eq: sentence
            embedding=F.normalize(vector, dim=1) if self.options["normalize"] else vector, encoded=encoded
        )

    def encode(
        self,
        sentences: str | Iterable[Any],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        prompt: str | None = None,
        **about: Any,
    ) -> Any:
        """The vectors of many texts, as ``SentenceTransformer.encode`` gives them: (texts, size) in
        float32, or (size,) for a single str.

        An array by default, ``convert_to_tensor`` a tensor on the model's device,
        ``convert_to_numpy=False`` a list of tensors. ``prompt`` is put in front of every text. Texts
        longer than the tokenizer's ``max_length`` are cut. The texts may also come as mteb hands them out, in
        batches ``{"text": [...]}``; what mteb says ``about`` its task changes nothing.
        """
        if strange := about.keys() - MTEB_WORDS:
            raise InputError(f"encode takes no {sorted(strange)[0]!r}; a model of the zoo does the same for every text")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size!r}")
        alone = isinstance(sentences, str)
        texts: list[str] = [sentences] if isinstance(sentences, str) else list(texts_of(sentences))
        if wrong := [text for text in texts if not isinstance(text, str)]:
            raise InputError(f"encode takes texts (str), got {wrong[0]!r:.80}")
        vectors = self._vectors([(prompt or "") + text for text in texts], batch_size, bool(show_progress_bar))
        vectors = F.normalize(vectors, dim=1) if normalize_embeddings else vectors
        found: Any = vectors
        if not convert_to_tensor:
            found = vectors.cpu().numpy() if convert_to_numpy else list(vectors)
        return found[0] if alone else found

    def _vectors(self, texts: Sequence[str], batch_size: int, shown: bool) -> Tensor:
        """(texts, hidden) float32, on the model's device."""
        from rich.console import Console
        from rich.progress import track

        result = torch.zeros(len(texts), self.get_embedding_dimension(), device=self.device)
        if not texts:
            return result
        tokenizer, training = self.need_tokenizer(), self.training
        self.eval()
        try:
            with torch.inference_mode():
                shown_batches = track(
                    self._batches(tokenizer, texts, batch_size),
                    "Batches",
                    total=math.ceil(len(texts) / batch_size),
                    console=Console(stderr=True),
                    disable=not shown,
                )
                for places, batch in shown_batches:
                    made = self(**{name: tensor.to(self.device) for name, tensor in batch.items()}).embedding
                    result[torch.tensor(places, device=self.device)] = made.float()
        finally:
            self.train(training)
        return result

    def _batches(
        self, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """The texts' places and tensors, longest first: sorted by characters, then in each window, which is
        all that is tokenized at once, by tokens.
        """
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        for window in windows(order, batch_size):
            encodings = tokenizer.encodings([texts[place] for place in window])
            for chosen in like_lengths([len(encoding.ids) for encoding in encodings], batch_size):
                yield [window[one] for one in chosen], tokenizer.batch([encodings[one] for one in chosen])

    def get_embedding_dimension(self) -> int:
        """The size of a vector, by the name that other libraries ask for."""
        dense = [layer["size"] for layer in self.options["layers"] if layer["kind"] == "dense"]
        return int(dense[-1]) if dense else self.model.hidden_size

    get_sentence_embedding_dimension = get_embedding_dimension  # what sentence-transformers called it before 6.0

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """The cosines of each vector of the one with each of the other, (first, second)."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """The cosine of each vector with the one at the same place, (texts,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb asks of a model before it takes it."""
        try:
            from mteb.models.model_meta import ModelMeta
        except ImportError as error:
            raise AttributeError("mteb_model_meta needs the package mteb, which is not installed") from error
        report = getattr(self, "load_report", None)
        name = Path(report.source).name if report else "unnamed"
        known = {
            "name": f"zoo/{name}",
            "embed_dim": self.get_embedding_dimension(),
            "n_parameters": self.num_parameters(),
        }
        return ModelMeta.create_empty(overwrites={**known, "framework": ["PyTorch"], "similarity_fn_name": "cosine"})


MTEB_WORDS = frozenset({"task_metadata", "hf_split", "hf_subset", "prompt_type", "task_name"})


def texts_of(sentences: Iterable[Any]) -> Iterable[str]:
    """Texts as they come, or out of batches that hold them as "text"."""
    for item in sentences:
        if isinstance(item, Mapping) and "text" in item:
            yield from item["text"]
        else:
            yield item


def _unit(vectors: Any) -> Tensor:
    vectors = torch.as_tensor(vectors).float()
    return F.normalize(vectors if vectors.dim() == 2 else vectors[None], dim=1)
