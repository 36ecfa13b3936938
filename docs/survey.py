"""The survey's tables as the zoo has them: filled from the registry and the repository's golden
cases into `docs/survey.md`.

python -m docs.survey            rewrite the tables
python -m docs.survey --check    exit code 1 where the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import zoo
from docs.generate import BLOCK, table
from zoo.registry import variants as registry

PAGE = Path(__file__).parent / "survey.md"
GOLDEN = Path(__file__).parents[1] / "tests" / "golden"

# the survey's name: the variant that implements it, the folder of its golden cases, how knowledge enters, and the
# survey's own words for the form of the knowledge and the method
KNOWLEDGE = {
    "K-BERT": (
        "k-bert-base",
        "k-bert",
        "input: facts inserted into the sentence, visible only to their subject",
        "prior knowledge; knowledge graph",
    ),
    "BERT-wwm": (
        "bert-wwm-chinese",
        "whole-word-masking",
        "masking: whole words of a segmenter",
        "prior knowledge; changed masking",
    ),
    "ERNIE (Baidu)": (
        "ernie-2-base",
        "ernie-baidu",
        "masking: phrases and entities; tasks are added one by one",
        "not listed",
    ),
    "SpanBERT": (
        "spanbert-base",
        "spanbert",
        "masking: spans, also predicted from their boundaries",
        "prior knowledge; changed masking",
    ),
    "KnowBERT": (
        "knowbert-wiki-wordnet",
        "knowbert",
        "structure: linked entities update the states of a layer",
        "prior knowledge; changed masking",
    ),
    "ZEN": (
        "zen-base",
        "zen",
        "structure: an encoder of n-grams beside the characters",
        "prior knowledge; changed structure",
    ),
    "ERNIE_THU": (
        "ernie-thu-base",
        "ernie-thu",
        "structure: a stream of graph vectors fused with the words",
        "prior knowledge; changed structure",
    ),
    "K-Adapter": (
        "roberta-large",
        "k-adapter",
        "beside the frozen model: adapters that read its states, each trained on its own knowledge",
        "knowledge adapter; changed structure",
    ),
}
TECHNIQUES = {"K-Adapter": ("zoo.KAdapter", "Wang et al., 2021, arXiv:2002.01808")}
"""Rows that are not a model but a technique applied to one: the technique and its paper."""


def knowledge() -> str:
    """Table 3: the knowledge-enhanced models."""
    rows = []
    for name, (variant_name, system, how, filed) in KNOWLEDGE.items():
        variant = registry.variant(variant_name)
        with torch.device("meta"):
            model = variant.model_class()(registry.config(variant_name))
            count = model.num_parameters()
        here, paper = f"`{variant_name}`", variant.paper
        if name in TECHNIQUES:
            technique, paper = TECHNIQUES[name]
            here = f"`{technique}` on `{variant_name}`"
            with torch.device("meta"):
                count = zoo.apply(model, getattr(zoo, technique.removeprefix("zoo."))()).num_parameters()
        cases = len(list((GOLDEN / system).glob("*/case.json")))
        rows.append([name, here, paper, how, filed, f"{count:,}", str(cases)])
    return table(
        ["model", "here", "paper", "how knowledge enters", "the survey: form; method", "parameters", "golden cases"],
        rows,
    )


TABLES = {"knowledge": knowledge}


def render() -> str:
    """The page with its tables filled anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}", PAGE.read_text(encoding="utf-8"))


def main() -> int:
    new, old = render(), PAGE.read_text(encoding="utf-8")
    if new != old and "--check" not in sys.argv:
        PAGE.write_text(new, encoding="utf-8")
    return 1 if new != old and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
