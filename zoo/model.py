"""The common surface of every model: config, heads, places for techniques, initialisation, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.config import Config
from zoo.errors import InputError
from zoo.layers.embeddings import TextEmbeddings
from zoo.layers.extend import own_class
from zoo.layers.masks import Padding, packing_enabled
from zoo.layers.stack import Stack
from zoo.layers.streams import Schedule
from zoo.layers.trace import Trace
from zoo.outputs import Encoded, Streams
from zoo.registry import TEXT_INPUTS

HeadFactory = Callable[[Any], nn.Module]
TaskHeadFactory = Callable[[Any, int], nn.Module]


@dataclass(frozen=True)
class Site:
    """A place in a model that a technique may change: ``path`` of the part, its ``role``, its ``stream`` and the ``depths`` at which it
    runs.
    """

    path: str
    role: str
    stream: str
    depths: tuple[int, ...]
    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        return self.parent.get_submodule(self.name)

    def replace(self, module: nn.Module) -> None:
        """Put another part there, under the same name."""
        setattr(self.parent, self.name, module)


class Model(nn.Module):
    """Base of every family's model. Subclasses set `Config` and `heads`, assemble in ``__init__`` and write ``forward`` as the paper
    does.
    """

    Config: ClassVar[type[Config]]
    roles: ClassVar[Mapping[str, str]] = {"embeddings": "embeddings", "encoder": "encoder", "pooler": "pooler"}
    techniques: tuple[Any, ...] = ()  # what was applied, in order, see `zoo.techniques`
    pruned_widths: Mapping[str, int] = {}
    heads: ClassVar[Mapping[str, HeadFactory]] = {}  # the pre-training heads that the family's checkpoints carry, from config to part
    inputs: ClassVar[tuple[str, ...]] = TEXT_INPUTS  # the tensors that ``forward`` reads, as the family's .toml lists them
    task_heads: ClassVar[Mapping[str, TaskHeadFactory]] = {}  # heads that the family builds its own way: (config, labels) to part
    reads_first: ClassVar[frozenset[str]] = frozenset()  # of them, those that read the first token's state and not the pooled vector
    exceptions: ClassVar[Mapping[str, str]] = {}  # common properties that the paper's own model breaks, each with its reason

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def packing(self) -> bool:
        """Whether a padded batch would run packed, here and now."""
        return packing_enabled()

    @classmethod
    def widths(cls, config: Any) -> Mapping[str, int]:
        """The widths that heads read: of the text's states, of the regions' and of the pooled vector, where the model has them."""
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
        """Random weights as BERT draws them: truncated normal of ``initializer_range``, zero biases, norms at one and zero."""
        initialise(self, self.config.initializer_range, generator)

    def sites(self) -> Iterator[Site]:
        """Every place that a technique may look for, in the order of the model's parts."""
        yield from _sites(self, "", "text", ())


def _sites(module: nn.Module, path: str, stream: str, own_depths: tuple[int, ...]) -> Iterator[Site]:
    roles: Mapping[str, str] = getattr(module, "roles", {})
    for name, child in module.named_children():
        depths = tuple(sorted({*own_depths, *getattr(child, "also_at", ())}))  # a part that other layers borrow runs at theirs too
        where = f"{path}.{name}" if path else name
        if name in roles and isinstance(child, nn.ModuleList):
            for index in range(len(child)):
                yield Site(f"{where}.{index}", roles[name], getattr(module, "stream", stream), depths, child, str(index))
        elif name in roles:
            yield Site(where, roles[name], getattr(module, "stream", stream), depths, module, name)
        if isinstance(child, Stack):
            yield from _stack_sites(child, where, getattr(child, "stream", stream))
        elif isinstance(child, Schedule):
            yield from _schedule_sites(child, where)
        else:
            yield from _sites(child, where, getattr(child, "stream", stream), depths)


def _stack_sites(stack: Stack, path: str, stream: str) -> Iterator[Site]:
    ran: dict[str, list[int]] = {}
    for depth, where in enumerate(_runs_of(stack, path)):
        ran.setdefault(where, []).append(depth)
    for where, at in ran.items():
        yield from _sites(stack.get_submodule(where[len(path) + 1 :]), where, stream, tuple(at))


def _schedule_sites(schedule: Schedule, path: str) -> Iterator[Site]:
    """A block of one stream is that stream's; in a block of several the part named like a stream is. A depth is a step's number."""
    ran: dict[str, tuple[tuple[str, ...], list[int]]] = {}
    for depth, (where, writes) in enumerate(schedule.runs()):
        ran.setdefault(where, (writes, []))[1].append(depth)
    for where, (writes, at) in ran.items():
        block = schedule.get_submodule(where)
        if len(writes) == 1:
            yield from _sites(block, f"{path}.{where}", writes[0], tuple(at))
        else:
            for name, side in block.named_children():
                yield from _sites(side, f"{path}.{where}.{name}", name if name in writes else "joint", tuple(at))


def _runs_of(stack: Stack, path: str) -> Iterator[str]:
    for index in stack.plan:
        block, where = stack.blocks[index], f"{path}.blocks.{index}"
        if isinstance(block, Stack):
            yield from _runs_of(block, where)
        else:
            yield where


class TextEncoder(Model):
    """A model that reads one text: embeddings, a stack, a pooler where the config has one."""

    embeddings: TextEmbeddings
    encoder: Stack
    pooler: nn.Module | None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Encoded:
        """Encode a batch of texts.

        input_ids, token_type_ids, position_ids: (batch, length) int. attention_mask: (batch, length), 1/True = a real token, or (batch,
        query, key), 1/True = query may look at key. inputs_embeds: (batch, length, embedding) in place of input_ids. lengths: real tokens
        per row, where each row is real tokens first and padding after. Raises InputError for float masks, wrong shapes, ids outside their
        table, too long a text.
        """
        trace = Trace(output_hidden_states, output_attentions)
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        padding = Padding.of(attention_mask, (x.shape[0], x.shape[1]), lengths=lengths, pack=not output_attentions, device=x.device)
        x = padding.pack(x)  # (tokens, hidden) where the batch has padding
        trace.hidden(x)
        x = padding.unpack(self.encoder(x, padding.mask, None, trace))  # (batch, length, hidden)
        pooled = None if self.pooler is None else self.pooler(padding.first(x))  # (batch, hidden)
        return Encoded(x, pooled, trace.states(padding.unpack), trace.maps(padding.real))


class VisionLanguageModel(Model):
    """A model of pictures and words: what its tasks need to know of it besides its result, which has ``text``, ``image`` and
    ``pooler_output``.
    """

    answers_at: ClassVar[str] = "pooled"  # where an answer is read: the "pooled" vector, or the "last-word" before the closing [SEP]
    answer_loss: ClassVar[str] = "bce"  # on soft answer scores: "bce" summed over answers, or "kl"
    pairs_of_pictures: ClassVar[bool] = True  # two pictures of one text: two passes whose pooled vectors are joined, or one sequence
    matching_dropout: ClassVar[float] = 0.0  # on the pooled vector before the image-text matching head, while training
    embeddings: TextEmbeddings

    def word_padding(self, given: Mapping[str, Any], encoded: Any) -> Padding:
        """Which of the states that predict words are real, from a call's arguments by name and what it gave."""
        raise NotImplementedError


class _Undrawn(TorchFunctionMode):
    """`torch.nn.init` does nothing inside."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build parts on the meta device: shapes without numbers. Drawing them, which would do nothing there, would load half of torch."""
    with torch.device("meta"), _Undrawn():
        yield


def initialise(module: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """Draw every Linear and Embedding of ``module`` from a normal of ``std`` cut at two of them; biases 0; norms 1 and 0.

    A part with other needs defines ``init_parameters(std, generator)`` and is asked instead, parameters of its children excepted.
    """
    with torch.no_grad():
        for part in module.modules():
            own = getattr(part, "init_parameters", None)
            if own is not None:
                own(std, generator)
            elif isinstance(part, (nn.Linear, nn.Embedding)):
                truncated_normal(part.weight, std, generator)
                if isinstance(part, nn.Linear) and part.bias is not None:
                    part.bias.zero_()
            elif isinstance(part, nn.LayerNorm):
                if part.weight is not None:
                    part.weight.fill_(1)
                if part.bias is not None:
                    part.bias.zero_()
            elif next(part.parameters(recurse=False), None) is not None:
                raise NotImplementedError(f"{type(part).__name__} has parameters of its own and no init_parameters")


def truncated_normal(weight: Tensor, std: float, generator: torch.Generator | None = None) -> None:
    """Fill with a normal of ``std`` redrawn beyond two of them (as TensorFlow's truncated normal, which BERT used)."""
    if weight.device.type == "meta":
        return
    weight.normal_(0, std, generator=generator)
    for _ in range(16):  # each round redraws the 4.6 % that lie outside
        outside = weight.abs() > 2 * std
        count = int(outside.sum())
        if not count:
            return
        weight[outside] = torch.empty(count, dtype=weight.dtype, device=weight.device).normal_(0, std, generator=generator)
    weight.clamp_(-2 * std, 2 * std)


def need_pooler(encoded: Encoded | Streams) -> Tensor:
    """The pooled output, or an InputError that says why there is none."""
    if encoded.pooler_output is None:
        raise InputError("this model was built without its pooler (config.pooler = False), so there is no pooled output")
    return encoded.pooler_output
