"""Models and batches: one set of weights in both layouts, and inputs whose lengths are those of
real text.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

import zoo
from examples.texts import news

WIDTH = 128
THIRD = 1 / 3
READER = "minilm-l6-h384.all-minilm-l6-v2"  # whose tokenizer reads the texts, for every model alike


@dataclass(frozen=True)
class Case:
    """A model as both libraries can load it. ``layout``: the foreign layout, None where no other
    library here has the model.
    """

    name: str
    batch: int
    layout: str | None = "hf-bert"
    tag: str = ""  # a trained checkpoint; random weights where empty
    regions: tuple[int, int] | None = None  # (regions, feature width)
    peers: bool = False  # also against ONNX Runtime, OpenVINO and CTranslate2
    int8: bool = False
    num_layers: int | None = None  # fewer than the published model has, where it is too large to time
    kinds: tuple[str, ...] = ("full", "third")  # of batches

    def write(self, folder: Path) -> None:
        """``folder/zoo`` and, where there is a layout, ``folder/theirs``."""
        if (folder / "zoo").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        given: dict[str, Any] = {"pretrained": True} if self.tag else {"generator": torch.Generator().manual_seed(0)}
        if self.num_layers is not None:
            given["num_layers"] = self.num_layers
        name = f"{self.name}.{self.tag}" if self.tag else self.name
        zoo.save(zoo.create(name, **given), folder / "zoo")
        if self.layout:
            zoo.convert(folder / "zoo", folder / "theirs", to=self.layout)
            if self.peers:  # CTranslate2 asks for a vocabulary, and for a key that newer configs leave out
                config = json.loads((folder / "theirs" / "config.json").read_text()) | {
                    "position_embedding_type": "absolute"
                }
                (folder / "theirs" / "config.json").write_text(json.dumps(config, indent=2))
                tokenizer = zoo.tokenizer(READER)
                words = [str(tokenizer.id_to_token(i)) for i in range(tokenizer.vocab_size)]
                (folder / "theirs" / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")

    def inputs(self, kind: str) -> dict[str, numpy.ndarray]:
        """``full``: every token real; ``third``: about one third of them, and of the regions; ``text``: one
        third of the tokens, and every region (published LXMERT always has 36).
        """
        ids, mask = batch(self.batch, "third" if kind == "text" else kind)
        arrays = {"input_ids": ids % zoo.config(self.name).vocab_size, "attention_mask": mask}
        if self.layout == "hf-xlm":
            arrays["langs"] = numpy.full_like(ids, 4)  # English
        if self.layout == "hf-mbart":
            arrays["decoder_input_ids"], arrays["decoder_attention_mask"] = arrays["input_ids"], mask
        if self.regions:
            count, width = self.regions
            generator = numpy.random.default_rng(0)
            arrays["visual_embeds"] = generator.standard_normal((self.batch, count, width), dtype=numpy.float32)
            kept = generator.integers(10, count // 2, self.batch) if kind == "third" else numpy.full(self.batch, count)
            if self.layout == "hf-lxmert":
                arrays["visual_feats"] = arrays.pop("visual_embeds")
                arrays["visual_pos"] = generator.random((self.batch, count, 4), dtype=numpy.float32)
            elif self.layout:
                arrays["visual_token_type_ids"] = numpy.ones((self.batch, count), dtype=numpy.int64)
            else:  # ViLBERT reads boxes: corners and area, as shares of the picture
                arrays["visual_boxes"] = generator.random((self.batch, count, 5), dtype=numpy.float32)
            arrays["visual_attention_mask"] = (numpy.arange(count)[None] < kept[:, None]).astype(numpy.int64)
        return arrays


CASES = (
    Case("minilm-l6-h384", 16, tag="all-minilm-l6-v2", peers=True, int8=True),
    Case("bert-base", 8, peers=True, int8=True),
    Case("mobilebert-base", 8, "hf-mobilebert", int8=True),
    Case("albert-base", 8, "hf-albert"),
    Case("distilbert-base", 8, "hf-distilbert"),
    Case("electra-base", 8, "hf-electra"),
    Case("roberta-base", 8, "hf-roberta"),
    Case("xlm-mlm-tlm-xnli15-1024", 8, "hf-xlm"),
    Case("xlm-roberta-base", 8, "hf-xlm-roberta"),
    Case("xlm-roberta-xl", 8, "hf-xlm-roberta-xl", num_layers=2),
    Case("ernie-2-base", 8, "hf-ernie"),
    Case("rembert", 8, "hf-rembert", num_layers=4),
    Case("mbart-large-cc25", 8, "hf-mbart", num_layers=2),
    Case("visualbert-base", 8, "hf-visualbert", regions=(36, 2048)),
    Case("vilbert-base", 8, None, regions=(37, 2048)),
    Case("lxmert-base", 8, "hf-lxmert", regions=(36, 2048), kinds=("full", "third", "text")),
)


@functools.cache
def _texts() -> list[list[int]]:
    """The tokens of each sentence and each whole text of the BBC's news, cut at the width."""
    tokenizer = zoo.tokenizer(READER)
    texts = [text for document in news(limit=300) for text in (*document, " ".join(document))]
    found = tokenizer(texts, max_length=WIDTH, truncation=True)
    lengths = found["attention_mask"].sum(1).tolist()
    return [row[:n].tolist() for row, n in zip(found["input_ids"], lengths, strict=True)]


def batch(rows: int, kind: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(ids, mask), each (rows, WIDTH) int64. Of 2,000 random draws of real texts the one whose
    share of real tokens is nearest.
    """
    texts = _texts()
    long = [text for text in texts if len(text) == WIDTH]
    generator = numpy.random.default_rng(0)
    if kind == "full":
        chosen = [long[i] for i in generator.choice(len(long), rows, replace=False)]
    else:
        short = [text for text in texts if len(text) < WIDTH]
        draws = [generator.choice(len(short), rows - 1, replace=False) for _ in range(2000)]
        share = [(WIDTH + sum(len(short[i]) for i in draw)) / rows / WIDTH for draw in draws]
        best = draws[int(numpy.abs(numpy.array(share) - THIRD).argmin())]
        chosen = [long[0], *(short[i] for i in best)]
    ids, mask = (numpy.zeros((rows, WIDTH), dtype=numpy.int64) for _ in range(2))
    for row, text in enumerate(chosen):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return ids, mask
