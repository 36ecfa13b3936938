"""Where a tensor of an adapter library belongs in a model of ours, and back.

Both libraries name an adapter's tensors after the module of the base model at which it sits
(``encoder.layer.0.attention.self.query``); the family's own map says which part of ours that is, so
every family with a map can read them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from zoo.checkpoints.adapters.putting import write
from zoo.checkpoints.description import class_path
from zoo.errors import CheckpointError, TechniqueError
from zoo.formats.archive import DTYPE_NAMES, Info
from zoo.layers.extend import own_class
from zoo.maps import layouts
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import Plan
from zoo.models.base.model import bare_model
from zoo.models.base.sites import Site
from zoo.registry import variants as registry
from zoo.techniques.lora.layers import LowRank
from zoo.techniques.prefix.technique import PrefixTuning

Written = tuple[dict[str, Tensor], dict[str, Any]]  # the tensors and the config of a library's file


def bare_name(model: nn.Module, name: str) -> str:
    """The name that a tensor of a model has in the model below its task."""
    return name if bare_model(model) is model else name.removeprefix("model.")


def path_of_class(model: nn.Module) -> str:
    """The class of the model below a task, as the registry writes it."""
    return class_path(own_class(bare_model(model)))


def copy_into(targets: Mapping[str, Tensor], stored: Mapping[str, Tensor], shown: str) -> None:
    """Copy stored tensors into those of their names, refusing what fits none."""
    for key, tensor in stored.items():
        if key not in targets:
            raise CheckpointError(f"{shown}: nothing in this model takes the stored tensor {key}")
        write(targets[key], tensor, key, shown)


class Places:
    """The parts of a model under the names that a foreign layout gives them; layout: None = the
    family's Hugging Face layout. What is asked for is worked out then.
    """

    def __init__(self, model: nn.Module, layout: str | None = None):
        self.model, self._layout = model, layout

    @cached_property
    def keymap(self) -> KeyMap:
        return layouts.load(self._layout or layout_of(self.model))

    @property
    def within(self) -> str:
        """The base model's prefix, where a task stands above it."""
        return self.keymap.prefixes[0] if bare_model(self.model) is not self.model else ""

    @cached_property
    def plan(self) -> Plan:
        """How the model's own tensors, without what techniques added, go into the layout. A tensor
        that a technique stores otherwise, as packed integers, counts as it was.
        """
        bare = bare_model(self.model)
        own: set[str] = set()
        added: set[str] = set()
        stored: dict[str, tuple[int, ...]] = {}
        for change in getattr(bare, "changes", ()):
            own |= set(change.removed) - added  # what another technique added is not the model's own
            stored |= {key: shape for key, shape in change.removed.items() if key in own}
            added |= set(change.added) - own
        state = {bare_name(self.model, key): tensor for key, tensor in self.model.state_dict().items()}
        parts = dict(bare.named_modules())
        infos = {
            key: Info(tuple(tensor.shape), DTYPE_NAMES[tensor.dtype])
            for key, tensor in state.items()
            if key not in added and not key.endswith(".magnitude")
        }
        for key, shape in stored.items():
            if key not in state and key.rpartition(".")[0] in parts:
                infos[key] = Info(shape, DTYPE_NAMES[bare.dtype])
        return self.keymap.back(infos, bare.config.to_dict())

    @cached_property
    def parts(self) -> dict[str, str]:
        """The path of each part in the foreign layout, as the bare model has it, to its path in
        ours (heads under ``heads.``).
        """
        alone = [step for step in self.plan.steps if len(step.sources) == len(step.targets) == 1]
        return {
            step.targets[0].removeprefix(self.plan.prefix).rpartition(".")[0]: step.sources[0].rpartition(".")[0]
            for step in alone
        }

    @cached_property
    def foreign(self) -> dict[str, str]:
        """The way back: our path to the foreign one."""
        return {ours: foreign for foreign, ours in self.parts.items()}

    def find(self, path: str) -> str | None:
        """Our path of a foreign module, with or without the base model's prefix, or None."""
        for prefix in ("", *self.keymap.prefixes):
            if path.startswith(prefix) and (found := self.parts.get(path[len(prefix) :])):
                return found
        return None

    def part(self, path: str) -> str:
        """Our path of a foreign module that must be there."""
        found = self.find(path)
        if found is None:
            raise CheckpointError(
                f"the adapter sits at {path!r}, and no part of this model is called so in that layout"
            )
        return found


def layout_of(model: nn.Module) -> str:
    """The Hugging Face layout of a model's family."""
    own = path_of_class(model)
    families = [v.maps for variants in registry.families().values() for v in variants if v.class_path == own]
    for family in dict.fromkeys(families):
        for layout in layouts.available():
            if layout.startswith("hf-") and layouts.load(layout).family == family:
                return layout
    raise TechniqueError(
        f"no layout of the Hugging Face library is known for {type(bare_model(model)).__name__}; name one with layout="
    )


def chosen(own: Iterable[Any], name: str | None, kinds: str, one_kind: str) -> list[Any]:
    """The techniques of one name, all of one kind; without a name, where there is only one. The
    last two are for messages.
    """
    own = list(own)
    names = sorted({technique.name for technique in own})
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        raise TechniqueError(f"name one of the model's {kinds}, which are {', '.join(names) or 'none'}; got {name!r}")
    found = [technique for technique in own if technique.name == name]
    types = sorted({type(technique).__name__ for technique in found})
    if len(types) > 1:
        raise TechniqueError(f"{name!r} names a {' and a '.join(types)}; {one_kind}")
    return found


def prefixed_sites(bare: Any, library: str) -> list[Site]:
    """The attentions in front of which a library's prefixes stand; refuses a model that it could
    not tell of.
    """
    sites = [site for site in bare.sites() if site.role == "self-attention"]
    streams = {site.stream for site in bare.sites() if site.role.endswith("attention")}
    if len(streams) > 1 or any(site.role == "cross-attention" for site in bare.sites()):
        raise TechniqueError(
            f"{library}'s prefixes stand before one stack of attentions; {type(bare).__name__} has the streams "
            f"{sorted(streams)}"
        )
    if any(len(site.depths) > 1 for site in sites):
        raise TechniqueError(
            f"one attention runs at several depths here; {library} has a prefix for each depth: save it with "
            "library='zoo'"
        )
    return sites


def check_update(down: Tensor | None, up: Tensor | None, in_features: int, out_features: int, shown: str) -> None:
    """Refuse the matrices of a LoRA, (rank, in) and (out, rank), that don't fit its layer."""
    if down is None or up is None:
        raise CheckpointError(f"{shown} has no {'A' if down is None else 'B'}; a LoRA is B A, both matrices of a layer")
    wanted = (down.shape[0], in_features), (out_features, down.shape[0])
    if (tuple(down.shape), tuple(up.shape)) != wanted:
        raise CheckpointError(
            f"{shown} has A {tuple(down.shape)} and B {tuple(up.shape)}; the layer here, of {in_features} inputs and "
            f"{out_features} outputs, takes {wanted[0]} and {wanted[1]}: is it of another size, or pruned?"
        )


def fill_update(
    update: nn.Module,
    path: str,
    down: Tensor | None,
    up: Tensor | None,
    magnitude: Tensor | None = None,
    bias: Tensor | None = None,
) -> None:
    """Set the matrices of a LoRA. path: its layer's, for messages."""
    assert isinstance(update, LowRank)
    shown = f"the adapter at {path}"
    check_update(down, up, update.down.shape[1], update.up.shape[0], shown)
    assert down is not None
    assert up is not None
    write(update.down, down, "A", shown)
    write(update.up, up, "B", shown)
    if magnitude is not None and update.magnitude is not None:
        write(update.magnitude, magnitude.flatten(), "its magnitude", shown)
    if bias is not None and update.up_bias is not None:
        write(update.up_bias, bias, "B's bias", shown)


def fill_prefix(model: nn.Module, technique: PrefixTuning, taken: Mapping[str, Tensor]) -> None:
    """Set all tensors of a prefix."""
    wanted = bare_model(model).get_submodule(f"prefixes.{technique.name}").state_dict(keep_vars=True)
    if missing := sorted(set(wanted) - set(taken)):
        raise CheckpointError(f"the prefix: nothing in the file makes its {', '.join(missing)}")
    copy_into(wanted, taken, "the prefix")


def renamed(tensors: Mapping[str, Tensor], parts: Mapping[str, str]) -> dict[str, Tensor]:
    """Tensors whose names' beginnings, all but the last word, are put into other words."""
    split = {key: key.rpartition(".") for key in tensors}
    return {f"{parts[split[key][0]]}.{split[key][2]}": tensor for key, tensor in tensors.items()}
