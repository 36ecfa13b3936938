"""zoo: extended pre-trained language models in PyTorch, from shared parts, with converters that
prove themselves.

    import zoo
    model = zoo.create("albert-base")  # random weights, as the paper draws them
    model = zoo.create("minilm-l6-h384.all-minilm-l6-v2", pretrained=True)  # a public checkpoint, converted

Importing this package imports no torch; each name below is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from zoo.registry.resources import VERSION as __version__
from zoo.registry.techniques import TECHNIQUES

_WHERE = {
    "AttentionProbabilities": "zoo.training.distillation.terms",
    "AttentionScores": "zoo.training.distillation.terms",
    "Config": "zoo.models.base.config",
    "Distillation": "zoo.training.distillation.objective",
    "Embeddings": "zoo.training.distillation.terms",
    "HiddenStates": "zoo.training.distillation.terms",
    "Model": "zoo.models.base.model",
    "Patience": "zoo.training.distillation.terms",
    "Images": "zoo.data.images.images",
    "Regions": "zoo.data.regions.regions",
    "Relations": "zoo.training.distillation.terms",
    "Search": "zoo.inference.search.settings",
    "SoftTargets": "zoo.training.distillation.terms",
    "Transfer": "zoo.training.distillation.terms",
    "ZooError": "zoo.errors",
    "apply": "zoo.techniques.base",
    "config": "zoo.registry.variants",
    "convert": "zoo.checkpoints.convert",
    "create": "zoo.api.create",
    "diff": "zoo.api.diff",
    "export": "zoo.inference.export",
    "generate": "zoo.inference.generate",
    "images": "zoo.checkpoints.images",
    "info": "zoo.api.info",
    "inspect": "zoo.api.info",
    "list_models": "zoo.registry.listing",
    "load": "zoo.checkpoints.load",
    "optimize": "zoo.inference.optimize",
    "packing": "zoo.layers.padding",
    "pipeline": "zoo.api.pipeline",
    "push_to_hub": "zoo.checkpoints.publishing",
    "register": "zoo.registry.variants",
    "save": "zoo.checkpoints.save",
    "score": "zoo.inference.generate",
    "tokenizer": "zoo.checkpoints.tokenizer",
    "trim_vocabulary": "zoo.techniques.trimming",
    "unregister": "zoo.registry.variants",
    "verify": "zoo.checkpoints.verify",
    **{name: technique.module for name, technique in TECHNIQUES.items()},
}

__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:  # written from _WHERE by `python -m docs.generate`
    from zoo.api.create import create as create
    from zoo.api.diff import diff as diff
    from zoo.api.info import info as info
    from zoo.api.info import inspect as inspect
    from zoo.api.pipeline import pipeline as pipeline
    from zoo.checkpoints.convert import convert as convert
    from zoo.checkpoints.images import images as images
    from zoo.checkpoints.load import load as load
    from zoo.checkpoints.publishing import push_to_hub as push_to_hub
    from zoo.checkpoints.save import save as save
    from zoo.checkpoints.tokenizer import tokenizer as tokenizer
    from zoo.checkpoints.verify import verify as verify
    from zoo.data.images.images import Images as Images
    from zoo.data.regions.regions import Regions as Regions
    from zoo.errors import ZooError as ZooError
    from zoo.inference.export import export as export
    from zoo.inference.generate import generate as generate
    from zoo.inference.generate import score as score
    from zoo.inference.optimize import optimize as optimize
    from zoo.inference.search.settings import Search as Search
    from zoo.layers.padding import packing as packing
    from zoo.models.base.config import Config as Config
    from zoo.models.base.model import Model as Model
    from zoo.registry.listing import list_models as list_models
    from zoo.registry.variants import config as config
    from zoo.registry.variants import register as register
    from zoo.registry.variants import unregister as unregister
    from zoo.techniques.adapters.technique import ActiveAdapters as ActiveAdapters
    from zoo.techniques.adapters.technique import AdapterFusion as AdapterFusion
    from zoo.techniques.adapters.technique import BottleneckAdapter as BottleneckAdapter
    from zoo.techniques.adapters.technique import InvertibleAdapter as InvertibleAdapter
    from zoo.techniques.adaptive_span.technique import AdaptiveSpan as AdaptiveSpan
    from zoo.techniques.base import apply as apply
    from zoo.techniques.early_exit import EarlyExit as EarlyExit
    from zoo.techniques.k_adapter.technique import KAdapter as KAdapter
    from zoo.techniques.long_short.technique import LongShortRange as LongShortRange
    from zoo.techniques.lora.technique import IA3 as IA3
    from zoo.techniques.lora.technique import LoRA as LoRA
    from zoo.techniques.prefix.technique import PrefixTuning as PrefixTuning
    from zoo.techniques.pruning.gates import GatePruning as GatePruning
    from zoo.techniques.pruning.structured import FeedForwardPruning as FeedForwardPruning
    from zoo.techniques.pruning.structured import HeadPruning as HeadPruning
    from zoo.techniques.pruning.structured import LayerPruning as LayerPruning
    from zoo.techniques.pruning.weights import L0Pruning as L0Pruning
    from zoo.techniques.pruning.weights import MovementPruning as MovementPruning
    from zoo.techniques.pruning.weights import WeightPruning as WeightPruning
    from zoo.techniques.pruning.width import WidthPruning as WidthPruning
    from zoo.techniques.quantization.technique import FullyQt as FullyQt
    from zoo.techniques.quantization.technique import IBert as IBert
    from zoo.techniques.quantization.technique import Int8 as Int8
    from zoo.techniques.quantization.technique import Q8Bert as Q8Bert
    from zoo.techniques.quantization.technique import QBert as QBert
    from zoo.techniques.quantization.technique import WeightOnly as WeightOnly
    from zoo.techniques.sharing import FactorizedEmbedding as FactorizedEmbedding
    from zoo.techniques.sharing import Sharing as Sharing
    from zoo.techniques.sparse.technique import FixedAttention as FixedAttention
    from zoo.techniques.sparse.technique import SlidingWindow as SlidingWindow
    from zoo.techniques.sparse.technique import StridedAttention as StridedAttention
    from zoo.techniques.theseus import Theseus as Theseus
    from zoo.techniques.trimming import trim_vocabulary as trim_vocabulary
    from zoo.training.distillation.objective import Distillation as Distillation
    from zoo.training.distillation.terms import AttentionProbabilities as AttentionProbabilities
    from zoo.training.distillation.terms import AttentionScores as AttentionScores
    from zoo.training.distillation.terms import Embeddings as Embeddings
    from zoo.training.distillation.terms import HiddenStates as HiddenStates
    from zoo.training.distillation.terms import Patience as Patience
    from zoo.training.distillation.terms import Relations as Relations
    from zoo.training.distillation.terms import SoftTargets as SoftTargets
    from zoo.training.distillation.terms import Transfer as Transfer


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}; its names are {', '.join(sorted(_WHERE))}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
