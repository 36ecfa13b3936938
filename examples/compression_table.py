"""What each way of making a model smaller or faster costs, on real text: one trained MiniLM, one
task, one table.

    python -m examples.compression_table [--out docs/images/compression.svg] [--json FILE]

all-MiniLM-L6 learns to tell the BBC's five topics from the first 40 tokens of a text, from 12 texts
of each; 300 others (60 of each) are the test. Each technique starts from that model, is trained a
little further on the same texts where it needs it, and is measured on the test texts: accuracy,
macro-F1, parameters, bytes of the file, milliseconds for a text (batches of 32, the fastest of
three passes).
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from examples.texts import NEWS
from zoo.checkpoints.fetching.fetch import fetch
from zoo.tasks.metrics.language import accuracy, binary_f1
from zoo.techniques import early_exit, theseus
from zoo.techniques.pruning import weights as pruning
from zoo.techniques.pruning.gates import close_gates, gate_penalty, gated_parts
from zoo.techniques.pruning.importance import head_importance, heads_to_prune, width_importance
from zoo.techniques.pruning.structured import remove_heads
from zoo.techniques.pruning.width import remove_dimensions

MODEL = "minilm-l6-h384.all-minilm-l6-v2"
LENGTH, TRAIN, TEST, BATCH = 40, 12, 60, 32


@dataclass
class Row:
    name: str
    accuracy: float
    f1: float
    parameters: int
    file: float  # megabytes
    milliseconds: float
    remark: str = ""


@dataclass
class Texts:
    """Encoded texts: a list of (ids, label)."""

    train: list[tuple[list[int], int]]
    test: list[tuple[list[int], int]]
    topics: tuple[str, ...]


def texts(tokenizer: Any, train: int = TRAIN, test: int = TEST) -> Texts:
    """Of each topic's files in order, every second one: the first for training, the others for the
    test; no text is in both.
    """
    folders = sorted(folder for folder in fetch(NEWS).iterdir() if folder.is_dir())
    found = Texts([], [], tuple(folder.name for folder in folders))
    for label, folder in enumerate(folders):
        paths = sorted(folder.glob("*.txt"))[::2][: train + test]
        rows = [
            (tokenizer.encode(" ".join(path.read_text(encoding="latin-1").split()[: 2 * LENGTH])).ids[:LENGTH], label)
            for path in paths
        ]
        found.train += rows[:train]
        found.test += rows[train:]
    return found


def batch_of(rows: Sequence[tuple[list[int], int]]) -> dict[str, Tensor]:
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows])
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([label for _, label in rows])}


def train(
    model: Any,
    rows: Sequence[tuple[list[int], int]],
    epochs: int,
    rate: float = 1e-4,
    *,
    groups: list[dict[str, Any]] | None = None,
    loss: Callable[[Any, dict[str, Tensor]], Tensor] = lambda model, batch: model(**batch).loss,
    each: Callable[[int, int], None] = lambda step, total: None,
    seed: int = 0,
) -> Any:
    """AdamW, batches of 16, a rate that falls to nothing."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model.train()
    parameters: Any = groups or [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    per_epoch = len(range(0, len(rows), 16))
    total, step = epochs * per_epoch, 0
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda now: 1 - now / total)
    for _ in range(epochs):
        order = torch.randperm(len(rows), generator=generator).tolist()
        for at in range(0, len(rows), 16):
            each(step, total)
            loss(model, batch_of([rows[n] for n in order[at : at + 16]])).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            falling.step()
            optimizer.zero_grad()
            step += 1
    return model.eval()


def plain(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(**batch).logits
    return logits


def measure(
    name: str, model: Any, data: Texts, answer: Callable[[Any, dict[str, Tensor]], Tensor] = plain, **said: Any
) -> Row:
    """Everything that stands in a row; the time is that of one text, in batches of texts of like
    length.
    """
    model.eval()
    rows = sorted(data.test, key=lambda row: len(row[0]))
    batches = [batch_of(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)]
    labels = torch.cat([batch.pop("labels") for batch in batches])
    best, logits = float("inf"), torch.empty(0)
    for _ in range(3):
        started = time.perf_counter()
        logits = torch.cat([answer(model, batch).float() for batch in batches])
        best = min(best, time.perf_counter() - started)
    predicted = logits.argmax(1)
    megabytes = said.pop("megabytes", None)
    row = Row(
        name,
        float(accuracy(predicted, labels)),
        macro_f1(predicted, labels, len(data.topics)),
        sum(p.numel() for p in model.parameters()) if "parameters" not in said else said.pop("parameters"),
        file_size(model) if megabytes is None else megabytes,
        1000 * best / len(rows),
        said.pop("remark", ""),
    )
    print(
        f"{row.name:34} {row.accuracy:6.1%} {row.f1:6.3f} {row.parameters / 1e6:6.2f} M {row.file:6.1f} MB "
        f"{row.milliseconds:6.2f} ms",
        flush=True,
    )
    return row


def macro_f1(predicted: Tensor, labels: Tensor, classes: int) -> float:
    return (
        sum(float(binary_f1((predicted == label).long(), (labels == label).long())) for label in range(classes))
        / classes
    )


def file_size(model: Any) -> float:
    """Megabytes of the saved weights, zeros stored sparsely; of a prepared model, which can't be
    saved, of the tensors that it holds.
    """
    if getattr(model, "prepared", None) is not None:
        seen = {id(t): t for t in (*model.parameters(), *model.buffers())}
        for part in model.modules():
            held = [
                getattr(value, "tensor", value) for value in vars(part).values()
            ]  # oneDNN's own layout is no buffer
            seen |= {id(value): value for value in held if isinstance(value, Tensor)}
        return sum(t.numel() * t.element_size() for t in seen.values()) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        return (
            sum(
                path.stat().st_size
                for path in zoo.save(model, Path(folder) / "saved", sparse=True).glob("*.safetensors")
            )
            / 1e6
        )


# --- the techniques ---------------------------------------------------------------------------------------------------


def weights(model: Any, data: Texts, sparsity: float) -> Any:
    """Magnitude pruning across all matrices, gradually."""
    zoo.apply(model, zoo.WeightPruning(sparsity=0.0))

    def each(step: int, total: int) -> None:
        if step % 4 == 0:
            share = pruning.cubic_sparsity(step, begin=0, end=total // 2, final=sparsity)
            pruning.remask(model, pruning.magnitudes(model), share, "across")

    train(model, data.train, 6, 5e-5, each=each)
    pruning.remask(model, pruning.magnitudes(model), sparsity, "across")
    return model


def movement(model: Any, data: Texts, kept: float, epochs: int = 40) -> Any:
    """Movement pruning: scores learned beside the weights, the threshold on its cubic way down."""
    zoo.apply(model, zoo.MovementPruning(threshold=1.0))
    scores = [parameter for name, parameter in model.named_parameters() if name.endswith("gate.scores")]
    known = {id(parameter) for parameter in scores}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]

    def each(step: int, total: int) -> None:
        share, _ = pruning.threshold_at(step, total=total, warmup=total // 8, initial=1.0, final=kept)
        pruning.set_threshold(model, share)

    train(model, data.train, epochs, groups=[{"params": scores, "lr": 1e-2}, {"params": rest, "lr": 1e-4}], each=each)
    pruning.set_threshold(model, kept)
    pruning.fix_masks(model)
    return model


def heads(model: Any, data: Texts, share: float) -> Any:
    """The heads that the loss feels least, at least one of a layer left."""
    scores = head_importance(
        model, [batch_of(data.train[at : at + 20]) for at in range(0, len(data.train), 20)]
    ).importance
    count = round(share * sum(len(score) for score in scores.values()))
    remove_heads(model, heads_to_prune(scores, count, least=1))
    return train(model, data.train, 4, 5e-5)


def units(model: Any, data: Texts, kept: float) -> Any:
    return train(zoo.apply(model, zoo.FeedForwardPruning(kept=kept)), data.train, 4, 5e-5)


def narrow(model: Any, data: Texts, kept: float) -> Any:
    """The numbers of the hidden width that the loss feels least, out of every part."""
    score = width_importance(model, [batch_of(data.train[at : at + 20]) for at in range(0, len(data.train), 20)])
    remove_dimensions(model, score.argsort()[: len(score) - round(kept * len(score))].tolist())
    return train(model, data.train, 10, 5e-5)


def gates(model: Any, data: Texts) -> Any:
    """Learned gates with the weights frozen, then the smaller model trained on."""
    zoo.apply(model, zoo.GatePruning())
    scores = [part.gate.scores for part in gated_parts(model).values()]
    sizes = {"heads": 0, "units": 0}
    for part in gated_parts(model).values():
        sizes["units" if part.span == 1 else "heads"] += part.gate.scores.numel()

    def loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
        return model(**batch).loss + sum(3.0 * count / sizes[kind] for kind, count in gate_penalty(model).items())

    train(model, data.train, 15, groups=[{"params": scores, "lr": 0.3}], loss=loss)
    close_gates(model)
    return train(model, data.train, 4, 5e-5)


def layers(model: Any, data: Texts, gone: tuple[int, ...]) -> Any:
    return train(zoo.apply(model, zoo.LayerPruning(layers=gone)), data.train, 4, 5e-5)


def successors(model: Any, data: Texts, count: int, epochs: int = 40) -> Any:
    zoo.apply(model, zoo.Theseus(layers=count))
    steps = epochs * len(range(0, len(data.train), 16))
    schedule = theseus.LinearReplacement(model, 0.3, 0.7 / (steps // 2))
    parameters = theseus.successor_parameters(model)
    train(
        model,
        data.train,
        epochs,
        groups=[{"params": parameters, "lr": 2e-4}],
        each=lambda step, _: void(schedule.step()),
    )
    theseus.finish(model)
    return model


def void(value: object) -> None:
    """Nothing."""


def table(model: Any, data: Texts, size: int) -> Any:
    return train(zoo.apply(model, zoo.FactorizedEmbedding(size=size)), data.train, 4, 5e-5)


def exits(model: Any, data: Texts) -> Any:
    """Off-ramps trained on the finished model."""
    zoo.apply(model, zoo.EarlyExit(num_labels=len(data.topics)))
    ramps = early_exit.ramp_parameters(model)
    model.requires_grad_(False)
    for parameter in ramps:
        parameter.requires_grad_(True)
    return train(model, data.train, 30, groups=[{"params": ramps, "lr": 1e-3}], loss=early_exit.ramp_loss)


def leaving(**rule: Any) -> Callable[[Any, dict[str, Tensor]], Tensor]:
    return lambda model, batch: early_exit.classify(model, batch, **rule).logits


def mean_layers(model: Any, data: Texts, **rule: Any) -> str:
    ran = torch.cat(
        [
            early_exit.classify(model, batch_of(data.test[at : at + 100]), **rule).layers
            for at in range(0, len(data.test), 100)
        ]
    )
    return f"{float(ran.float().mean()):.1f} layers on average"


def run(data: Texts, tuned: Any) -> Iterable[Row]:
    def fresh() -> Any:
        return copy.deepcopy(tuned)

    def optimized(name: str, model: Any, dtype: str, **said: Any) -> Row:
        return measure(
            name, zoo.optimize(model, dtype), data, parameters=sum(p.numel() for p in model.parameters()), **said
        )

    width = tuned.config.hidden_size // 3
    yield measure("fine-tuned, as it is", fresh(), data)
    yield measure(
        "weights 50 % gone, across",
        weights(fresh(), data, 0.5),
        data,
        remark="no faster: dense multiplications over zeros",
    )
    yield measure(
        "weights 80 % gone, across",
        weights(fresh(), data, 0.8),
        data,
        remark="no faster: dense multiplications over zeros",
    )
    yield measure(
        "movement, 50 % gone", movement(fresh(), data, 0.5), data, remark="no faster: dense multiplications over zeros"
    )
    yield measure("half of the heads, by importance", heads(fresh(), data, 0.5), data)
    yield measure("half of the units, by magnitude", units(fresh(), data, 0.5), data)
    yield measure("three quarters of the width, by importance", narrow(fresh(), data, 0.75), data)
    gated = gates(fresh(), data)
    yield measure("heads and units by learned gates", gated, data)
    yield measure("4 of 6 layers", layers(fresh(), data, (3, 4)), data)
    three = successors(fresh(), data, 3)
    yield measure("Theseus, 3 layers", three, data)
    yield measure(f"token table of width {width}", table(fresh(), data, width), data)
    leave = exits(fresh(), data)
    yield measure(
        "exits, entropy < 0.6", leave, data, leaving(threshold=0.6), remark=mean_layers(leave, data, threshold=0.6)
    )
    yield measure("exits, patience 2", leave, data, leaving(patience=2), remark=mean_layers(leave, data, patience=2))
    yield optimized("oneDNN, float32", fresh(), "float32", remark="size in memory")
    yield optimized("oneDNN, bfloat16", fresh(), "bfloat16", remark="size in memory")
    yield optimized("oneDNN, int8", fresh(), "int8", remark="size in memory")
    both = units(heads(fresh(), data, 0.5), data, 0.5)
    yield optimized("stack 1: half of both, int8", both, "int8", remark="size in memory")
    yield optimized(
        "stack 2: Theseus 3, narrow table, int8",
        table(copy.deepcopy(three), data, width),
        "int8",
        remark="size in memory",
    )
    stacked = exits(weights(copy.deepcopy(both), data, 0.5), data)
    remark = mean_layers(stacked, data, threshold=0.6)
    yield measure("stack 3: half of both, 50 % zeros, exits", stacked, data, leaving(threshold=0.6), remark=remark)


def markdown(rows: Sequence[Row]) -> str:
    """The table as it stands in the documentation."""
    lines = [
        "| model | accuracy | macro-F1 | parameters | file | time per text | |",
        "| --- | --: | --: | --: | --: | --: | --- |",
    ]
    for row in rows:
        cells = [
            f"{row.accuracy:.1%}",
            f"{row.f1:.3f}",
            f"{row.parameters / 1e6:.1f} M",
            f"{row.file:.1f} MB",
            f"{row.milliseconds:.2f} ms",
        ]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.remark} |")
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over time per text; the area of a point is the size of the file."""
    from docs.drawings.measured import compressed

    drawn = compressed([(row.name, 100 * row.accuracy, row.file, row.milliseconds) for row in rows])
    path.write_text(drawn, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.compression_table", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--out", type=Path, help="the picture")
    parser.add_argument("--json", type=Path, help="the figures")
    parser.add_argument("--train", type=int, default=TRAIN, help="training texts of each topic")
    parser.add_argument("--test", type=int, default=TEST, help="test texts of each topic")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    data = texts(zoo.tokenizer(MODEL), options.train, options.test)
    generator = torch.Generator().manual_seed(0)
    model = zoo.create(
        MODEL, pretrained=True, task="sequence-classification", num_labels=len(data.topics), generator=generator
    )
    train(model, data.train, 10, 1e-4)
    rows = list(run(data, model))
    print(markdown(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    if options.out:
        draw(rows, options.out)
    print(f"{time.perf_counter() - started:.0f} s, {torch.get_num_threads()} threads")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
