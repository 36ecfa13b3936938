"""Does knowledge in the input help? A trained MiniLM judges statements about words of WordNet whose facts it never trained on.

    a basenji is a kind of hound        true
    a basenji is a kind of terrier      false: terriers and hounds are both hunting dogs

Half the statements are true; a false one names a sister of the true kind, so that the words alone say little. The model is tuned on some
words and judged on others, in three ways: without knowledge, with the word's gloss grafted behind it (K-BERT's tree), and with the kind
itself grafted. Three seeds each; the spread is shown.

    python examples/knowledge_gain.py WORDNET MODEL       folders: WordNet's data.* files; a MiniLM or BERT that `zoo.load` reads
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

import torch

import zoo
from zoo.knowledge import KnowledgeGraph
from zoo.tasks.knowledge import SentenceTreeCollator

Statement = tuple[list[str], int]


def statements(graph: KnowledgeGraph, count: int, seed: int) -> list[tuple[str, Statement]]:
    """(word, (words of the statement, 1 = true)) for words of one sense, each of another word."""
    rng = random.Random(seed)
    synsets: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    kinds_below: dict[str, list[str]] = {}
    for subject, relation, value in graph.triples():
        if relation == "sense" and ".n." in value:
            synsets.setdefault(subject, []).append(value)
        if relation == "hypernym" and ".n." in subject:
            kinds.setdefault(subject, value)
            kinds_below.setdefault(value, []).append(subject)
    words = sorted(w for w, found in synsets.items() if len(found) == 1 and found[0] in kinds and w.islower() and " " not in w)
    rng.shuffle(words)
    made: list[tuple[str, Statement]] = []
    for word in words:
        kind = kinds[synsets[word][0]]
        sisters = [k for k in kinds_below.get(kinds.get(kind, ""), ()) if k != kind and k in kinds_below]
        if not sisters:
            continue
        true = len(made) % 2
        named = kind if true else rng.choice(sisters)
        made.append((word, (["[CLS]", "a", word, "is", "a", "kind", "of", plain(named), "[SEP]"], true)))
        if len(made) == count:
            break
    return made


def plain(synset: str) -> str:
    """``hunting_dog.n.01`` -> ``hunting dog``."""
    return synset.rsplit(".", 2)[0].replace("_", " ")


def knowledge(graph: KnowledgeGraph, words: list[str], kind: str) -> KnowledgeGraph:
    """What is grafted: nothing, the first words of a gloss, or the kind."""
    triples = []
    for word in words:
        facts = dict(reversed(graph.facts(next(value for _, value in graph.facts(word) if ".n." in value))))
        if kind == "gloss":
            triples.append((word, "means", " ".join(facts["gloss"].split(";")[0].split()[:12])))
        elif kind == "fact":
            triples.append((word, "is a", plain(facts["hypernym"])))
    return KnowledgeGraph.from_triples(triples)


def run(source: str, train: list[Statement], test: list[Statement], collator: SentenceTreeCollator, seed: int, epochs: int) -> float:
    """The share of test statements judged rightly after tuning."""
    torch.manual_seed(seed)
    model = zoo.load(source, task="sequence-classification", num_labels=2).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.01)
    order = random.Random(seed)
    for _ in range(epochs):
        order.shuffle(train)
        for start in range(0, len(train), 16):
            part = train[start : start + 16]
            loss = model(**batch(collator, part), labels=torch.tensor([label for _, label in part])).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    right = 0
    with torch.inference_mode():
        for start in range(0, len(test), 64):
            part = test[start : start + 64]
            right += int((model(**batch(collator, part)).logits.argmax(1) == torch.tensor([label for _, label in part])).sum())
    return right / len(test)


def batch(collator: SentenceTreeCollator, part: list[Statement]) -> dict[str, torch.Tensor]:
    made = collator([words for words, _ in part])
    made.pop("inserted")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wordnet")
    parser.add_argument("model")
    parser.add_argument("--train", type=int, default=1200)
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    from zoo.knowledge import read_wordnet

    started = time.perf_counter()
    graph = KnowledgeGraph.from_triples(read_wordnet(options.wordnet, glosses=True))
    print(f"{graph} read in {time.perf_counter() - started:.1f} s", flush=True)
    tokenizer = zoo.tokenizer(options.model)
    told = statements(graph, options.train + options.test, seed=0)
    words = [word for word, _ in told]
    scores: dict[str, list[float]] = {}
    for kind in ("none", "gloss", "fact"):
        collator = SentenceTreeCollator(
            graph=knowledge(graph, words, kind),
            token_id=tokenizer.token_to_id,
            unknown_id=tokenizer.unk_token_id,
            pieces=lambda text: tokenizer.backend.encode(text, add_special_tokens=False).tokens,
            joiner=" ",
            segments=0,
            max_length=64,
        )
        for seed in range(options.seeds):
            train, test = ([s for _, s in part] for part in (told[: options.train], told[options.train :]))
            scores.setdefault(kind, []).append(run(options.model, train, test, collator, seed, options.epochs))
            print(json.dumps({"knowledge": kind, "seed": seed, "right": round(scores[kind][-1], 4)}), flush=True)
    for kind, found in scores.items():
        print(f"{kind:6} {statistics.mean(found):.3f} on average, {min(found):.3f} to {max(found):.3f} over {len(found)} seeds")


if __name__ == "__main__":
    main()
