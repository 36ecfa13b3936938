"""The common surface of every model: config, heads, places for techniques, initialisation,
counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.errors import InputError, TechniqueError
from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.extend import own_class
from zoo.layers.init import initialise, shapes_only
from zoo.layers.padding import Padding, packing_enabled
from zoo.models.base.config import Config
from zoo.models.base.outputs import Encoded, Streams
from zoo.models.base.sites import Site, _sites
from zoo.registry.variants import TEXT_INPUTS

HeadFactory = Callable[[Any], nn.Module]
TaskHeadFactory = Callable[[Any, int], nn.Module]


class Model(nn.Module):
    """Base of every family's model. Subclasses set `Config` and `heads`, assemble in ``__init__``
    and write ``forward`` as the paper does.
    """

    Config: ClassVar[type[Config]]
    roles: ClassVar[Mapping[str, str]] = {"embeddings": "embeddings", "encoder": "encoder", "pooler": "pooler"}
    techniques: tuple[Any, ...] = ()  # what was applied, in order, see `zoo.techniques`
    pruned_widths: Mapping[str, int] = {}
    heads: ClassVar[
        Mapping[str, HeadFactory]
    ] = {}  # the pre-training heads that the family's checkpoints carry, from config to part
    inputs: ClassVar[tuple[str, ...]] = (
        TEXT_INPUTS  # the tensors that ``forward`` reads, as the family's .toml lists them
    )
    task_heads: ClassVar[
        Mapping[str, TaskHeadFactory]
    ] = {}  # heads that the family builds its own way: (config, labels) to part
    reads_first: ClassVar[frozenset[str]] = (
        frozenset()
    )  # of them, those that read the first token's state and not the pooled vector
    exceptions: ClassVar[
        Mapping[str, str]
    ] = {}  # common properties that the paper's own model breaks, each with its reason

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def packing(self) -> bool:
        """Whether a padded batch would run packed, here and now."""
        return packing_enabled()

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read: of the text's states, of the regions' and of the pooled
        vector, where the model has them.
        """
        return dict.fromkeys(("text", "image", "pooled"), config.hidden_size)

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states: the config's, or what pruning left of it."""
        return int(self.pruned_widths.get("hidden_size", self.config.hidden_size))

    def twin(self, config: Any) -> Model:
        """A model of the same class by another config, on the meta device, before any technique."""
        with shapes_only():
            made: Model = own_class(self)(config)
        return made

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self) -> int:
        """Distinct parameters, counted once however often they are used."""
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights as BERT draws them: truncated normal of ``initializer_range``, zero
        biases, norms at one and zero.
        """
        initialise(self, self.config.initializer_range, generator)

    def sites(self) -> Iterator[Site]:
        """Every place that a technique may look for, in the order of the model's parts."""
        yield from _sites(self, "", "text", ())


class VisionLanguageModel(Model):
    """A model of pictures and words: what its tasks need to know of it besides its result, which
    has ``text``, ``image`` and ``pooler_output``.
    """

    answers_at: ClassVar[str] = (
        "pooled"  # where an answer is read: the "pooled" vector, or the "last-word" before the closing [SEP]
    )
    answer_loss: ClassVar[str] = "bce"  # on soft answer scores: "bce" summed over answers, or "kl"
    pairs_of_pictures: ClassVar[bool] = (
        True  # two pictures of one text: two passes whose pooled vectors are joined, or one sequence
    )
    matching_dropout: ClassVar[float] = 0.0  # on the pooled vector before the image-text matching head, while training
    embeddings: TextEmbeddings

    def word_mask(self, given: Mapping[str, Any], encoded: Any) -> tuple[Tensor | None, Sequence[int] | None]:
        """Which of the states that predict words are real, as a mask and lengths, from a call's
        arguments by name and what it gave.
        """
        raise NotImplementedError

    def word_padding(self, given: Mapping[str, Any], encoded: Any) -> Padding:
        """The same, checked and ready to pack."""
        states = (encoded if isinstance(encoded, Encoded) else encoded.text).last_hidden_state
        mask, lengths = self.word_mask(given, encoded)
        return Padding.of(mask, tuple(states.shape[:2]), lengths=lengths, device=states.device)


def need_pooler(encoded: Encoded | Streams) -> Float[Tensor, "batch pooled"]:
    """The pooled output, or an InputError that says why there is none."""
    if encoded.pooler_output is None:
        raise InputError(
            "this model was built without its pooler (config.pooler = False), so there is no pooled output"
        )
    return encoded.pooler_output


def bare_model(model: nn.Module) -> Model:
    """The model itself, or the one inside a task model."""
    bare = model if isinstance(model, Model) else getattr(model, "model", None)
    if not isinstance(bare, Model):
        raise TechniqueError(f"a technique is applied to a model of the zoo, got {type(model).__name__}")
    return bare


def on_meta(model: nn.Module) -> bool:
    """Whether a model is only names and shapes so far."""
    return any(parameter.is_meta for parameter in model.parameters())
