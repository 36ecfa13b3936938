"""The common surface of every model: config, heads, places for techniques, initialisation,
counts.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from zoo.errors import InputError, TechniqueError, unknown
from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.extend import Extension, own_class
from zoo.layers.init import initialise
from zoo.layers.padding import Padding, packing_enabled, padding_like
from zoo.models.base.companions import Companions
from zoo.models.base.config import Config
from zoo.models.base.outputs import Encoded, Joint, Streams
from zoo.models.base.sites import Site, _sites
from zoo.registry.inputs import INPUTS, Input, InputTable
from zoo.registry.terms import PretrainingTerm
from zoo.registry.variants import TEXT_INPUTS

M = TypeVar("M", bound=nn.Module)
HeadFactory = Callable[[Any], nn.Module]
TaskHeadFactory = Callable[[Any, int], nn.Module]


@dataclass(frozen=True)
class Reading:
    """How tasks read one of the things that a model offers.

    read: a model's result -> states (batch, positions, size), or one vector a row. axis: the axis of
    the inputs along which its positions are real or not; None: it has no padding. mask: (model, a
    call's arguments by name, its result) -> mask and lengths, where that axis does not say all. part: how
    many of the first positions may bear labels on their own.
    """

    read: Callable[[Any], Any]
    axis: str | None = None
    mask: Callable[[Any, Mapping[str, Any], Any], tuple[Tensor | None, Sequence[int] | None]] | None = None
    part: Callable[[Any], int | None] | None = None
    pooled: bool = False  # the pooler gives it

    @property
    def padded(self) -> bool:
        """Whether it has positions of which some may be padding."""
        return self.axis is not None or self.mask is not None


class Model(Companions, nn.Module):
    """Base of every family's model. Subclasses set `Config` and `heads`, assemble in ``__init__``
    and write ``forward`` as the paper does.
    """

    Config: ClassVar[type[Config]]
    roles: ClassVar[Mapping[str, str]] = {"embeddings": "embeddings", "encoder": "encoder", "pooler": "pooler"}
    stream: ClassVar[str] = "text"  # that its places belong to, where it has one
    techniques: tuple[Any, ...] = ()  # what was applied, in order, see `zoo.techniques`
    pruned_widths: Mapping[str, int] = {}
    # the pre-training heads that the family's checkpoints carry, from config to part
    heads: ClassVar[Mapping[str, HeadFactory]] = {}
    # the tensors that ``forward`` reads, as the family's .toml lists them
    inputs: ClassVar[tuple[str, ...]] = TEXT_INPUTS
    # heads that the family builds its own way: (config, labels) to part
    task_heads: ClassVar[Mapping[str, TaskHeadFactory]] = {}
    # of them, those that read the first token's state and not the pooled vector
    reads_first: ClassVar[frozenset[str]] = frozenset()
    # the config's field that says how many labels a task's head has, where the family's config says it
    label_fields: ClassVar[Mapping[str, str]] = {}
    # heads of tasks that start, where a checkpoint lacks them, as rows of a head that it has: (head, rows)
    head_starts: ClassVar[Mapping[str, tuple[str, tuple[int, ...]]]] = {}
    offers: ClassVar[Mapping[str, Reading]] = {"text": Reading(lambda e: e.last_hidden_state, "length")}
    """What tasks may read, by the names of `zoo.registry.tasks.TaskSpec` or the family's own."""
    pretraining: ClassVar[tuple[PretrainingTerm, ...]] = ()  # the terms of its objective
    writes: ClassVar[str] = ""  # how it writes texts, a key of `zoo.inference.search.kinds.WRITERS`
    captions: ClassVar[Any] = None  # what makes batches of captions for it, of `zoo.data.captions`
    own_inputs: ClassVar[tuple[Input, ...]] = ()  # rows for `inputs` that the common table lacks
    input_table: ClassVar[InputTable] = INPUTS  # the common table with them
    arguments: ClassVar[frozenset[str]] = frozenset()  # what a call takes by name; empty: anything
    # config fields to which a model with weights can be brought, see `resize`
    resizable: ClassVar[frozenset[str]] = frozenset()
    # common properties that the paper's own model breaks, each with its reason
    exceptions: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "own_inputs" in vars(cls):
            cls.input_table = INPUTS.plus(cls.own_inputs)
        cls.arguments = _arguments(cls)
        if "Config" in vars(cls) and cls.__doc__ is None:  # a family, whose paper, equations and traps its file tells
            cls.__doc__ = getattr(sys.modules.get(cls.__module__), "__doc__", None)

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        check_tensors(self, inputs, named)
        for name in named:
            if self.arguments and name not in self.arguments:
                raise unknown(f"input of {own_class(self).__name__}", name, sorted(self.arguments))
        return super().__call__(*inputs, **named)

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

    def padding_of(self, what: str, given: Mapping[str, Any], encoded: Any, *, pack: bool = True) -> Padding:
        """Which positions of what is offered as ``what`` are real, from a call's arguments by name
        and its result.
        """
        reading = self.offers[what]
        states, axis = reading.read(encoded), reading.axis or ""
        name, count = self.input_table.mask(axis) or "attention_mask", self.input_table.count(axis) or ""
        mask, lengths = given.get(name), given.get(count)
        if reading.mask is not None:
            mask, lengths = reading.mask(self, given, encoded)
        return padding_like(states, mask, lengths, pack=pack, name=name)

    @property
    def hidden_size(self) -> int:
        """The width of the hidden states: the config's, or what pruning left of it."""
        return int(self.pruned_widths.get("hidden_size", self.config.hidden_size))

    @property
    def device(self) -> torch.device:
        return self._first_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        return self._first_tensor().dtype

    def _first_tensor(self) -> Tensor:
        """A parameter, or a buffer of floats in a copy that no optimizer trains."""
        found = next(self.parameters(), None)
        return next(buffer for buffer in self.buffers() if buffer.is_floating_point()) if found is None else found

    def num_parameters(self) -> int:
        """Distinct parameters, counted once however often they are used."""
        return sum(p.numel() for p in self.parameters())

    def resize(self, **fields: int) -> None:
        """Bring the model to other sizes that its weights can be fitted to, in place: those of `resizable`."""
        for name in fields:
            if name not in self.resizable:
                raise unknown(f"size to which {own_class(self).__name__} can be brought", name, self.resizable)
        for name, size in fields.items():
            getattr(self, f"resize_{name}")(size)
        self.config = self.config.replace(**fields)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Random weights as BERT draws them: truncated normal of ``initializer_range``, zero
        biases, norms at one and zero.
        """
        initialise(self, self.config.initializer_range, generator)

    def sites(self) -> Iterator[Site]:
        """Every place that a technique may look for, in the order of the model's parts."""
        yield from _sites(self, "", self.stream, ())


def _arguments(cls: type) -> frozenset[str]:
    """What a class's call takes by name, extensions' own included; none where it takes any name."""
    found: set[str] = set()
    for base in cls.__mro__:
        if "forward" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["forward"]).parameters.values()
        found.update(each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY))
        if issubclass(base, Extension):  # passes the rest on to what it extends
            continue
        return frozenset() if any(each.kind is each.VAR_KEYWORD for each in parameters) else frozenset(found - {"self"})
    return frozenset()


class VisionLanguageModel(Model):
    """A model of pictures and words: what its tasks need to know of it besides its result, which
    has ``text``, ``image`` and ``pooler_output``.
    """

    answer_loss: ClassVar[str] = "bce"  # on soft answer scores: "bce" summed over answers, or "kl"
    choice_loss: ClassVar[str] = "softmax"  # over one score for each choice: "softmax", or "binary", each alone
    grounding_loss: ClassVar[str] = "sum"  # on soft scores of regions, over a picture's: "sum", or "mean" over all
    ranking_loss: ClassVar[str] = "softmax"  # over pairs of words and pictures that compete, see `zoo.tasks.ranking`
    # two pictures of one text: two passes whose pooled vectors are joined, or one sequence
    pairs_of_pictures: ClassVar[bool] = True
    matching_dropout: ClassVar[float] = 0.0  # on the pooled vector before the image-text matching head, while training
    offers = {
        "words": Reading(
            lambda e: (e if isinstance(e, Joint) else e.text).last_hidden_state,
            mask=lambda model, given, e: model.word_mask(given, e),
            part=lambda e: e.text_length if isinstance(e, Joint) else None,
        ),
        "regions": Reading(lambda e: e.image.last_hidden_state, "regions"),
        "fused": Reading(lambda e: need_pooler(e), pooled=True),
    }
    embeddings: TextEmbeddings

    def word_mask(self, given: Mapping[str, Any], encoded: Any) -> tuple[Tensor | None, Sequence[int] | None]:
        """Which of the states that predict words are real, as a mask and lengths, from a call's
        arguments by name and what it gave.
        """
        raise NotImplementedError

    def answer_vector(self, given: Mapping[str, Any], encoded: Any) -> Float[Tensor, "batch size"]:
        """What an answer is read from."""
        return need_pooler(encoded)


def before_last(
    states: Float[Tensor, "batch length hidden"], real: Bool[Tensor, "batch length"] | None
) -> Float[Tensor, "batch hidden"]:
    """The state of the last but one real token: the word before the closing [SEP]."""
    if real is None:
        return states[:, -2]
    counted = real.cumsum(1)  # 1, 2, ... along the real tokens  # eq: before-last
    wanted = (counted[:, -1:] - 1).clamp(min=1)  # eq: before-last
    where = ((counted == wanted) & real).int().argmax(1)  # eq: before-last
    return states.gather(1, where[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


def need_pooler(encoded: Encoded | Streams) -> Float[Tensor, "batch pooled"]:
    """The pooled output, or an InputError that says why there is none."""
    if encoded.pooler_output is None:
        raise InputError(
            "this model was built without its pooler (config.pooler = False), so there is no pooled output"
        )
    return encoded.pooler_output


INSIDE = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Where torch's wrappers keep a model: torch.compile, DataParallel and AveragedModel, FSDP, activation
checkpointing.
"""


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """What torch wrapped around a model, from outside to the model itself, which comes last."""
    inner: nn.Module | None = model
    while inner is not None:
        yield inner
        inner = next((part for name in INSIDE if (part := inner._modules.get(name)) is not None), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of what torch wraps around one."""
    *_, inner = wrappers(model)
    return inner


def bare_model(model: nn.Module) -> Model:
    """The model itself, or the one inside a task model."""
    bare = model if isinstance(model, Model) else getattr(model, "model", None)
    if not isinstance(bare, Model):
        raise TechniqueError(f"a technique is applied to a model of the zoo, got {type(model).__name__}")
    return bare


def check_tensors(model: nn.Module, inputs: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse arguments of a call that no layer could take, whatever they mean: sparse tensors, float8,
    and tensors on meta for a model that is not.
    """
    if torch.compiler.is_compiling():
        return
    for name, value in (*enumerate(inputs), *named.items()):
        if not isinstance(value, Tensor):
            continue
        shown = name if isinstance(name, str) else f"argument {name}"
        if value.layout != torch.strided:
            raise InputError(f"{shown} is a tensor of the layout {value.layout}; pass a dense one (.to_dense())")
        if value.is_floating_point() and value.itemsize == 1:
            raise InputError(f"{shown} is {value.dtype}, in which no layer computes; pass float32, float16 or bfloat16")
        if value.is_meta and not on_meta(model):
            raise InputError(f"{shown} is on the device meta, so it has no values, and the model has; pass real ones")


def shadow(model: M) -> M:
    """A model's names and shapes, on which a change can be tried without touching the model."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        made = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return copy.deepcopy(model, memo)


def on_meta(model: nn.Module) -> bool:
    """Whether a model is only names and shapes so far."""
    return any(parameter.is_meta for parameter in model.parameters())
