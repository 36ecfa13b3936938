"""mteb: a model of the zoo as its encoder, on a similarity task whose sentences stand here."""

from __future__ import annotations

from typing import Any

import datasets
import mteb
import numpy
import torch
from mteb import TaskMetadata
from mteb.abstasks.sts import AbsTaskSTS
from mteb.models.abs_encoder import AbsEncoder
from sentence_transformers import SentenceTransformer

import zoo
from zoo.checkpoints.locate import locate

PAIRS = (
    ("A man is playing a guitar.", "Someone plays an instrument.", 4.0),
    ("A woman is slicing an onion.", "A woman is cutting an onion.", 4.8),
    ("The senate passed the bill.", "A dog runs over the field.", 0.0),
    ("A plane is taking off.", "An air plane is taking off.", 5.0),
    ("A child is riding a horse.", "Two cats sleep on a bed.", 0.4),
    ("The market fell by two percent.", "Stocks lost ground on Monday.", 3.1),
    ("A boy kicks a ball.", "A girl throws a ball.", 2.2),
    ("He closed the door.", "The door was closed by him.", 4.5),
)
TAG = "minilm-l6-h384.all-minilm-l6-v2"


class Similarity(AbsTaskSTS):
    """The pairs above as a task of mteb that fetches nothing."""

    metadata = TaskMetadata(
        name="EightPairs",
        description="Pairs of sentences that stand in a file.",
        reference=None,
        dataset={"path": "none/none", "revision": "1"},
        type="STS",
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="cosine_pearson",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )

    def load_data(self, **_: Any) -> None:
        first, second, score = zip(*PAIRS, strict=True)
        pairs = datasets.Dataset.from_dict({"sentence1": first, "sentence2": second, "score": score})
        self.dataset = datasets.DatasetDict(test=pairs)
        self.data_loaded = True


class ZooEncoder(AbsEncoder):
    """A sentence encoder of the zoo as mteb calls one."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @torch.inference_mode()
    def encode(self, inputs: Any, **_: Any) -> numpy.ndarray:
        vectors = [self.model(**self.tokenizer(list(batch["text"]))).embedding for batch in inputs]
        return torch.cat(vectors).numpy()


def scores() -> tuple[float, float]:
    """The score of the zoo's model, and of what sentence-transformers makes of the package's folder."""
    model = zoo.create(TAG, pretrained=True, task="sentence-embedding").eval()
    theirs = SentenceTransformer(str(locate(TAG)[0]), device="cpu")
    return _score(ZooEncoder(model, zoo.tokenizer(TAG))), _score(theirs)


def _score(model: Any) -> float:
    result = mteb.evaluate(model, Similarity(), cache=None, co2_tracker=False, show_progress_bar=False)
    return float(result.task_results[0].get_score())
