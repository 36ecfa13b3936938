"""Does knowledge help? A trained MiniLM sorts rare words by what they name, with and without a
graph that holds one fact of each.

    "a story about gerenuk"         animal, person, plant, ...?          the graph: (gerenuk, is a, antelope)
    "a story about Bujumbura"       Africa, Americas, Asia, ...?         the graph: (Bujumbura, capital of, Burundi)

Words and cities of the test are never trained on, and neither are the objects of their facts: no
word of the training is an antelope. The graph never holds an answer, and of a word's line up to its
answer only the first step: antelope is a kind of bovid, and that one of ruminant, ..., of animal.
Each seed draws its own words and tunes the model on them in each of these ways:

    none        the sentence alone
    tree        K-BERT's sentence tree: the fact grafted behind the word, soft positions, the visible matrix
    wrong       the model of "tree", in the test with the fact of another word: what the gain hangs on
    adapter     a K-Adapter trained on the graph's facts while the model is frozen (which object belongs to the
                word?), then frozen itself while the model and the head are tuned on the sentence alone

    python examples/knowledge_gain.py WORDNET COUNTRIES MODEL

WORDNET a folder with data.noun, COUNTRIES the countries.json of npm's world-countries, MODEL a
MiniLM or BERT that `zoo.load` reads.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge.readers import Triple, read_wordnet
from zoo.data.knowledge_batches import SentenceTreeCollator
from zoo.layers.pooler import pool

KINDS = {
    "animal": "animal.n.01",
    "plant": "plant.n.02",
    "person": "person.n.01",
    "artifact": "artifact.n.01",
    "substance": "substance.n.01",
    "food": "food.n.01",
    "body part": "body_part.n.01",
    "act": "act.n.02",
    "state": "state.n.02",
    "attribute": "attribute.n.02",
    "communication": "communication.n.02",
    "cognition": "cognition.n.01",
}
STEPS = 3  # from a word's synset to its kind at least: its object is one step, the kind is two beyond


@dataclass(frozen=True)
class Word:
    """Something to be sorted: its name, its kind's number, and the one triple that the graph holds
    of it.
    """

    name: str
    kind: int
    fact: Triple

    @property
    def sentence(self) -> list[str]:
        return ["[CLS]", "a", "story", "about", self.name, "[SEP]"]


@dataclass(frozen=True)
class Task:
    kinds: list[str]
    train: list[Word]
    test: list[Word]
    epochs: int

    @property
    def graph(self) -> KnowledgeGraph:
        return KnowledgeGraph.from_triples(word.fact for word in [*self.train, *self.test])

    @property
    def wrong_graph(self) -> KnowledgeGraph:
        """The test's facts, each given to the word of another kind."""
        rng = random.Random(1)
        others = [[w.fact for w in self.test if w.kind != word.kind] for word in self.test]
        return KnowledgeGraph.from_triples(
            (word.name, *rng.choice(facts)[1:]) for word, facts in zip(self.test, others, strict=True)
        )


def split(words: Sequence[Word], kinds: list[str], train: int, test: int, seed: int, epochs: int) -> Task:
    """Test and training share no object of a fact; the same number of words of each kind, as far as
    there are so many.
    """
    rng = random.Random(seed)
    parts: tuple[list[Word], list[Word]] = ([], [])
    for kind in range(len(kinds)):
        mine = [word for word in words if word.kind == kind]
        objects = sorted({word.fact[2] for word in mine})
        rng.shuffle(objects)
        wanted = test * len(mine) // max(len(mine), train + test)
        tested: set[str] = set()
        for thing in objects:
            if sum(word.fact[2] in tested for word in mine) < wanted:
                tested.add(thing)
        rng.shuffle(mine)
        parts[0].extend([word for word in mine if word.fact[2] not in tested][:train])
        parts[1].extend([word for word in mine if word.fact[2] in tested][:test])
    taught = {word.fact[2] for word in parts[0]}
    return Task(kinds, parts[0], [word for word in parts[1] if word.fact[2] not in taught], epochs)


def rare_nouns(folder: str, pieces: Any) -> Iterator[Word]:
    """Nouns of one sense that the vocabulary must cut into pieces, and whose kind is at least STEPS
    above them.
    """
    synsets: dict[str, list[str]] = {}
    above: dict[str, str] = {}
    for subject, relation, value in read_wordnet(folder):
        if relation == "sense":
            synsets.setdefault(subject, []).append(value)
        elif relation == "hypernym" and ".n." in subject:
            above.setdefault(subject, value)
    for name, found in synsets.items():
        if len(found) == 1 and name.islower() and name.isalpha() and len(pieces(name)) > 1:
            line = [found[0]]
            while line[-1] in above:
                line.append(above[line[-1]])
            at = next((place for place, synset in enumerate(line) if synset in KINDS.values()), 0)
            thing = line[min(1, at)].rsplit(".", 2)[0].replace("_", " ")
            kind = list(KINDS.values()).index(line[at]) if at >= STEPS else -1
            if kind >= 0 and not set(list(KINDS)[kind].split()) & set(thing.split()):
                yield Word(name, kind, (name, "is a", thing))


def capitals(path: str) -> tuple[list[Word], list[str]]:
    """Capitals and their region of the world; the graph holds their country."""
    countries = json.loads(Path(path).read_text(encoding="utf-8"))
    regions = sorted({c["region"] for c in countries} - {"Antarctic"})
    words = {}
    for country in countries:
        name = country["name"]["common"]
        for city in country["capital"][:1]:
            if country["region"] in regions and not set(city.lower().split()) & set(name.lower().split()):
                words[city] = Word(city, regions.index(country["region"]), (city, "capital of", name))
    return list(words.values()), regions


# --- the model --------------------------------------------------------------------------------------------------------


class Sorter(nn.Module):
    """A linear layer on the mean state of the sentence's own tokens; what a graph inserted counts
    through attention alone.
    """

    def __init__(self, model: Any, kinds: int) -> None:
        super().__init__()
        self.model, self.kinds = model, nn.Linear(model.config.hidden_size, kinds)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.kinds(sentence_vector(self.model, batch))


def sentence_vector(model: Any, batch: dict[str, Tensor]) -> Tensor:
    inputs = dict(batch)
    inserted = inputs.pop("inserted")
    real = inputs["attention_mask"].diagonal(dim1=1, dim2=2)  # (batch, length): every real token sees itself
    return pool(model(**inputs).last_hidden_state, real & ~inserted, "mean")


def collator(tokenizer: Any, graph: KnowledgeGraph) -> SentenceTreeCollator:
    def pieces(text: str) -> list[str]:
        return tokenizer.backend.encode(text, add_special_tokens=False).tokens

    return SentenceTreeCollator(
        graph=graph,
        token_id=tokenizer.token_to_id,
        unknown_id=tokenizer.unk_token_id,
        pieces=pieces,
        joiner=" ",
        segments=0,
        max_length=64,
    )


def batches(
    words: Sequence[Word], collate: SentenceTreeCollator, size: int, rng: random.Random | None
) -> Iterator[tuple[list[Word], dict[str, Tensor]]]:
    order = list(words)
    if rng is not None:
        rng.shuffle(order)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        yield part, collate([word.sentence for word in part])


def optimize(parameters: list[nn.Parameter], loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def tune(model: Any, task: Task, collate: SentenceTreeCollator, seed: int, epochs: int) -> Sorter:
    """Train the model (but for what is frozen) and the head on the training words."""
    torch.manual_seed(seed)
    sorter = Sorter(model, len(task.kinds)).train()
    model.embeddings.token.weight.requires_grad = False  # the table of pieces stays: the test's are not the training's
    parameters = [p for p in sorter.parameters() if p.requires_grad]
    heads = list(sorter.kinds.parameters())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if all(p is not h for h in heads)]}, {"params": heads, "lr": 2e-3}], lr=1e-4
    )
    rng = random.Random(seed)
    for _ in range(epochs):
        for part, batch in batches(task.train, collate, 32, rng):
            optimize(parameters, F.cross_entropy(sorter(batch), torch.tensor([word.kind for word in part])), optimizer)
    return sorter


@torch.inference_mode()
def share_right(sorter: Sorter, words: Sequence[Word], collate: SentenceTreeCollator) -> float:
    sorter.eval()
    right = sum(
        int((sorter(batch).argmax(1) == torch.tensor([w.kind for w in part])).sum())
        for part, batch in batches(words, collate, 64, None)
    )
    return right / len(words)


def with_adapter(source: str, task: Task, tokenizer: Any, seed: int, epochs: int) -> tuple[Any, float]:
    """A model whose K-Adapter learned the graph: the word's vector must be nearer to its fact's
    object than to all other objects, as the frozen model reads them. -> the model, adapter frozen,
    and the share of the facts it knows.
    """
    torch.manual_seed(seed)
    model = zoo.load(source)
    plain = collator(tokenizer, KnowledgeGraph.from_triples([]))
    things = sorted({word.fact[2] for word in [*task.train, *task.test]})
    number = {thing: place for place, thing in enumerate(things)}
    with torch.inference_mode():
        read = [
            sentence_vector(model.eval(), plain([["[CLS]", *thing.split(), "[SEP]"] for thing in things[at : at + 64]]))
            for at in range(0, len(things), 64)
        ]
        targets = F.normalize(torch.cat(read), dim=1)
        targets = F.normalize(targets - targets.mean(0), dim=1)
    targets = targets.clone()
    zoo.apply(
        model, zoo.KAdapter(size=192, num_layers=1, num_heads=6, intermediate_size=768, norm_eps=1e-12, dropout=0.0)
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("knowledge")
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    rng = random.Random(seed)
    known = 0.0
    for epoch in range(epochs):
        hits = 0
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - epoch / epochs)
        for part, batch in batches([*task.train, *task.test], plain, 64, rng):
            wanted = torch.tensor([number[word.fact[2]] for word in part])
            scores = F.normalize(sentence_vector(model, batch), dim=1) @ targets.T
            hits += int((scores.argmax(1) == wanted).sum())
            optimize(parameters, F.cross_entropy(scores / 0.05, wanted), optimizer)
        known = hits / (len(task.train) + len(task.test))
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not name.startswith("knowledge.")
    return model, known


def run(way: str, task: Task, source: str, tokenizer: Any, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """Tune in one way and judge. -> condition: share of the test words that are sorted rightly."""
    collate = collator(tokenizer, task.graph if way == "tree" else KnowledgeGraph.from_triples([]))
    known = {}
    if way == "adapter":
        model, share = with_adapter(source, task, tokenizer, seed, options.adapter_epochs)
        known = {"facts known": share}
    else:
        model = zoo.load(source)
    sorter = tune(model, task, collate, seed, task.epochs)
    right = {way: share_right(sorter, task.test, collate)}
    if way == "tree":
        right["wrong"] = share_right(sorter, task.test, collator(tokenizer, task.wrong_graph))
    return right | known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet")
    parser.add_argument("countries")
    parser.add_argument("model")
    parser.add_argument("--tasks", nargs="*", default=["words", "capitals"], choices=["words", "capitals"])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument(
        "--nouns", type=int, nargs=2, default=[100, 60], metavar=("TRAIN", "TEST"), help="nouns of each kind"
    )
    parser.add_argument("--adapter-epochs", type=int, default=15)
    options = parser.parse_args()
    started = time.perf_counter()
    tokenizer = zoo.tokenizer(options.model)
    cities, regions = capitals(options.countries)
    nouns = list(
        rare_nouns(options.wordnet, lambda text: tokenizer.backend.encode(text, add_special_tokens=False).tokens)
    )

    def drawn(name: str, seed: int) -> Task:
        if name == "words":
            return split(nouns, list(KINDS), *options.nouns, seed, epochs=5)
        return split(cities, regions, 25, 25, seed, epochs=15)

    scores: dict[str, dict[str, list[float]]] = {}
    for name in options.tasks:
        for seed in options.seeds:
            task = drawn(name, seed)
            often = max(sum(word.kind == kind for word in task.test) for kind in range(len(task.kinds))) / len(
                task.test
            )
            print(
                f"{name}, seed {seed}: {len(task.train)} to train, {len(task.test)} to test, {len(task.kinds)} kinds; "
                f"the commonest kind: {often:.1%}",
                flush=True,
            )
            for way in ("none", "tree", "adapter"):
                found = run(way, task, options.model, tokenizer, seed, options)
                for condition, share in found.items():
                    scores.setdefault(name, {}).setdefault(condition, []).append(share)
                print(
                    json.dumps({"task": name, "seed": seed, **found, "seconds": round(time.perf_counter() - started)}),
                    flush=True,
                )
    print("\n| task | knowledge | right on average | lowest | highest |\n| --- | --- | --- | --- | --- |")
    for name, ways in scores.items():
        known = ways.pop("facts known")
        for way, found in ways.items():
            print(f"| {name} | {way} | {statistics.mean(found):.1%} | {min(found):.1%} | {max(found):.1%} |")
        print(
            f"| {name} | facts that the adapter knows | {statistics.mean(known):.1%} | {min(known):.1%} | "
            f"{max(known):.1%} |"
        )


if __name__ == "__main__":
    main()
