"""zoo: extended pre-trained language models in PyTorch, from shared parts, with converters that prove themselves.

    import zoo
    model = zoo.create("albert-base")                                      # random weights, as the paper draws them
    model = zoo.create("minilm-l6-h384.all-minilm-l6-v2", pretrained=True)     # a public checkpoint, verified and converted

Importing this package imports no torch; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "ActiveAdapters": "zoo.techniques.adapters",
    "AdapterFusion": "zoo.techniques.adapters",
    "AdaptiveSpan": "zoo.techniques.adaptive_span",
    "AttentionProbabilities": "zoo.tasks.distill",
    "AttentionScores": "zoo.tasks.distill",
    "BottleneckAdapter": "zoo.techniques.adapters",
    "Config": "zoo.config",
    "Distillation": "zoo.tasks.distill",
    "Embeddings": "zoo.tasks.distill",
    "EarlyExit": "zoo.techniques.early_exit",
    "FactorizedEmbedding": "zoo.techniques.sharing",
    "FeedForwardPruning": "zoo.techniques.structured",
    "FixedAttention": "zoo.techniques.sparse",
    "FullyQt": "zoo.techniques.quantization",
    "GatePruning": "zoo.techniques.gates",
    "HeadPruning": "zoo.techniques.structured",
    "HiddenStates": "zoo.tasks.distill",
    "IA3": "zoo.techniques.lora",
    "IBert": "zoo.techniques.quantization",
    "Int8": "zoo.techniques.quantization",
    "InvertibleAdapter": "zoo.techniques.adapters",
    "KAdapter": "zoo.techniques.k_adapter",
    "L0Pruning": "zoo.techniques.pruning",
    "LayerPruning": "zoo.techniques.structured",
    "LoRA": "zoo.techniques.lora",
    "LongShortRange": "zoo.techniques.long_short",
    "Model": "zoo.model",
    "MovementPruning": "zoo.techniques.pruning",
    "Patience": "zoo.tasks.distill",
    "PrefixTuning": "zoo.techniques.prefix",
    "Q8Bert": "zoo.techniques.quantization",
    "QBert": "zoo.techniques.quantization",
    "Regions": "zoo.regions",
    "Relations": "zoo.tasks.distill",
    "Sharing": "zoo.techniques.sharing",
    "SlidingWindow": "zoo.techniques.sparse",
    "SoftTargets": "zoo.tasks.distill",
    "StridedAttention": "zoo.techniques.sparse",
    "Theseus": "zoo.techniques.theseus",
    "Transfer": "zoo.tasks.distill",
    "WeightOnly": "zoo.techniques.quantization",
    "WeightPruning": "zoo.techniques.pruning",
    "WidthPruning": "zoo.techniques.width",
    "ZooError": "zoo.errors",
    "apply": "zoo.techniques.base",
    "config": "zoo.registry",
    "convert": "zoo.conversion",
    "create": "zoo.create",
    "export": "zoo.export",
    "generate": "zoo.generate",
    "info": "zoo.info",
    "inspect": "zoo.info",
    "list_models": "zoo.registry",
    "load": "zoo.create",
    "optimize": "zoo.optimize",
    "packing": "zoo.layers.masks",
    "register": "zoo.registry",
    "save": "zoo.create",
    "tokenizer": "zoo.create",
    "trim_vocabulary": "zoo.trim",
    "unregister": "zoo.registry",
    "verify": "zoo.conversion",
}

__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from zoo.config import Config as Config
    from zoo.conversion import convert as convert
    from zoo.conversion import verify as verify
    from zoo.create import create as create
    from zoo.create import load as load
    from zoo.create import save as save
    from zoo.create import tokenizer as tokenizer
    from zoo.errors import ZooError as ZooError
    from zoo.export import export as export
    from zoo.generate import generate as generate
    from zoo.info import info as info
    from zoo.info import inspect as inspect
    from zoo.layers.masks import packing as packing
    from zoo.model import Model as Model
    from zoo.optimize import optimize as optimize
    from zoo.regions import Regions as Regions
    from zoo.registry import config as config
    from zoo.registry import list_models as list_models
    from zoo.registry import register as register
    from zoo.registry import unregister as unregister
    from zoo.tasks.distill import AttentionProbabilities as AttentionProbabilities
    from zoo.tasks.distill import AttentionScores as AttentionScores
    from zoo.tasks.distill import Distillation as Distillation
    from zoo.tasks.distill import Embeddings as Embeddings
    from zoo.tasks.distill import HiddenStates as HiddenStates
    from zoo.tasks.distill import Patience as Patience
    from zoo.tasks.distill import Relations as Relations
    from zoo.tasks.distill import SoftTargets as SoftTargets
    from zoo.tasks.distill import Transfer as Transfer
    from zoo.techniques.adapters import ActiveAdapters as ActiveAdapters
    from zoo.techniques.adapters import AdapterFusion as AdapterFusion
    from zoo.techniques.adapters import BottleneckAdapter as BottleneckAdapter
    from zoo.techniques.adapters import InvertibleAdapter as InvertibleAdapter
    from zoo.techniques.adaptive_span import AdaptiveSpan as AdaptiveSpan
    from zoo.techniques.base import apply as apply
    from zoo.techniques.early_exit import EarlyExit as EarlyExit
    from zoo.techniques.gates import GatePruning as GatePruning
    from zoo.techniques.k_adapter import KAdapter as KAdapter
    from zoo.techniques.long_short import LongShortRange as LongShortRange
    from zoo.techniques.lora import IA3 as IA3
    from zoo.techniques.lora import LoRA as LoRA
    from zoo.techniques.prefix import PrefixTuning as PrefixTuning
    from zoo.techniques.pruning import L0Pruning as L0Pruning
    from zoo.techniques.pruning import MovementPruning as MovementPruning
    from zoo.techniques.pruning import WeightPruning as WeightPruning
    from zoo.techniques.quantization import FullyQt as FullyQt
    from zoo.techniques.quantization import IBert as IBert
    from zoo.techniques.quantization import Int8 as Int8
    from zoo.techniques.quantization import Q8Bert as Q8Bert
    from zoo.techniques.quantization import QBert as QBert
    from zoo.techniques.quantization import WeightOnly as WeightOnly
    from zoo.techniques.sharing import FactorizedEmbedding as FactorizedEmbedding
    from zoo.techniques.sharing import Sharing as Sharing
    from zoo.techniques.sparse import FixedAttention as FixedAttention
    from zoo.techniques.sparse import SlidingWindow as SlidingWindow
    from zoo.techniques.sparse import StridedAttention as StridedAttention
    from zoo.techniques.structured import FeedForwardPruning as FeedForwardPruning
    from zoo.techniques.structured import HeadPruning as HeadPruning
    from zoo.techniques.structured import LayerPruning as LayerPruning
    from zoo.techniques.theseus import Theseus as Theseus
    from zoo.techniques.width import WidthPruning as WidthPruning
    from zoo.trim import trim_vocabulary as trim_vocabulary


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; its names are {', '.join(sorted(_WHERE))}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `zoo.config`, `zoo.create` and `zoo.convert` the functions, though modules of these names exist too.

    The import system binds a submodule to its package when it loads it; here the public name wins, whatever was imported first. The modules
    themselves are reached by ``from zoo.config import Config`` as always.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _WHERE and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
