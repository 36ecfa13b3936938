"""What does int8 cost MobileBERT? A small one, trained here from nothing to tell the five topics of
BBC news, then stored as int8.

No trained MobileBERT ships in a package, so this one is small and briefly trained; the bytes of the
published size are counted beside it. Four fifths of the texts train, every fifth tests; each is cut
to its first 48 tokens.

    python examples/mobilebert_int8.py
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from typing import Any

import torch
from texts import NEWS, SPECIAL_TOKENS, learn_wordpiece

import zoo
from zoo.checkpoints.fetching.fetch import fetch
from zoo.techniques.quantization.technique import stored_bytes

Example = tuple[list[int], int]
LENGTH = 48


def texts() -> list[tuple[str, int]]:
    """(text, topic)."""
    topics = [folder for folder in sorted(fetch(NEWS).iterdir()) if folder.is_dir()]
    return [
        (p.read_text(encoding="latin-1"), topic)
        for topic, folder in enumerate(topics)
        for p in sorted(folder.glob("*.txt"))
    ]


def batch_of(examples: list[Example]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Padded ids with their mask, and the topics."""
    longest = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in examples])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}, torch.tensor([topic for _, topic in examples])


def accuracy(model: Any, examples: list[Example]) -> float:
    """The share of right topics."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(examples), 64):
            batch, labels = batch_of(examples[start : start + 64])
            right += int((model(**batch).logits.argmax(1) == labels).sum())
    return right / len(examples)


def run(data: list[tuple[str, int]], steps: int, seed: int = 0) -> dict[str, float]:
    """Accuracy and bytes, in floating point and in int8."""
    torch.manual_seed(seed)
    train, test = [d for n, d in enumerate(data) if n % 5], [d for n, d in enumerate(data) if n % 5 == 0]
    tokenizer = learn_wordpiece([text for text, _ in train], 4000)
    cls = SPECIAL_TOKENS.index("[CLS]")
    encoded = [[([cls, *tokenizer.encode(t).ids[: LENGTH - 1]], topic) for t, topic in part] for part in (train, test)]
    sizes = {"num_layers": 4, "hidden_size": 128, "bottleneck_size": 64, "embedding_size": 64, "intermediate_size": 128}
    model = zoo.create(
        "mobilebert-base",
        task="sequence-classification",
        num_labels=5,
        vocab_size=tokenizer.get_vocab_size(),
        **sizes,
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    order = random.Random(seed)
    for _ in range(steps):
        batch, labels = batch_of(order.sample(encoded[0], min(16, len(encoded[0]))))
        loss = model(**batch, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    small = zoo.apply(copy.deepcopy(model.eval()), zoo.Int8())
    return {
        "accuracy": accuracy(model, encoded[1]),
        "int8_accuracy": accuracy(small, encoded[1]),
        "bytes": stored_bytes(model),
        "int8_bytes": stored_bytes(small),
    }


def published() -> float:
    """How many times smaller the published size becomes in int8."""
    whole, small = (zoo.create("mobilebert-base", device="meta", techniques=t) for t in ([], [zoo.Int8()]))
    return stored_bytes(whole) / stored_bytes(small)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    started = time.perf_counter()
    found = run(texts(), options.steps)
    print(f"accuracy {found['accuracy']:.1%}, in int8 {found['int8_accuracy']:.1%}")
    print(
        f"{found['bytes'] / found['int8_bytes']:.2f} times smaller here, {published():.2f} times at the published size"
    )
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
