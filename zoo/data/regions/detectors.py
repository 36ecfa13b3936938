"""The detectors whose regions public checkpoints were trained on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Detector:
    """What is known of a source of features: their ``width`` (None: any), the ``channels`` its
    pictures come in, the ``box`` order of its dumps."""

    width: int | None
    channels: str
    box: str
    source: str


DETECTORS: dict[str, Detector] = {
    "bottom-up-attention": Detector(
        2048, "BGR", "xyxy", "Anderson et al., 2018: Faster R-CNN, ResNet-101, Visual Genome; TSV dumps"
    ),
    "x152": Detector(
        2048, "BGR", "xyxy", "ResNeXt-152 Faster R-CNN of Pythia and MMF: ViLBERT multi-task, VisualBERT VQA"
    ),
    "vinvl-x152-c4": Detector(
        2048, "BGR", "xyxy", "Zhang et al., 2021, VinVL: ResNeXt-152 C4, 1,594 classes and 524 attributes: Oscar+"
    ),
    "detectron-fc6": Detector(1024, "BGR", "xyxy", "Detectron fc6: VisualBERT on NLVR2"),
    "resnet50-vcr": Detector(512, "RGB", "xyxy", "a ResNet-50 trained along on VCR: VisualBERT"),
    "vl-bert-e2e": Detector(2048, "BGR", "xyxy", "Fast R-CNN, ResNet-101, trained along: VL-BERT"),
    "torchvision-grid": Detector(
        2048, "RGB", "normalised", "cells of torchvision's ResNet-50: no detector, and no checkpoint reads them"
    ),
    "patch-grid": Detector(
        None, "RGB", "normalised", "pixels of the cells of a grid: no detector, and no checkpoint reads them"
    ),
    "grid": Detector(
        None, "RGB", "normalised", "cells of a network of your own: no detector, and no checkpoint reads them"
    ),
}
