"""`zoo tokenize | pretrain`: a corpus on disk, and a model that learns to guess its words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

import zoo
from zoo.cli.finetune import Bar
from zoo.cli.shared import Json, overrides_of, print_json
from zoo.errors import InputError


def tokenize(
    texts: Annotated[list[Path], typer.Argument(help="Files with a document a row: txt, csv, tsv, jsonl, parquet.")],
    tokenizer: Annotated[str, typer.Option(help="A name or folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    column: Annotated[str, typer.Option(help="The column that holds the text.")] = "text",
    as_json: Json = False,
) -> None:
    """Turn documents into token ids on disk, for `zoo pretrain`."""
    from zoo.data.corpus import write_corpus
    from zoo.data.tables import read_rows

    def documents() -> Iterator[str]:
        for path in texts:
            for number, row in enumerate(read_rows(path), 1):
                if not isinstance(row.get(column), str):
                    raise InputError(f"row {number} of {path} has no text in a column {column!r}: {list(row)}")
                yield row[column]

    about = write_corpus(documents(), zoo.tokenizer(tokenizer), out)
    if as_json:
        print_json({"path": str(out), **about})
    else:
        print(f"{about['documents']:,} documents, {sum(about['tokens']):,} tokens in {out}")


def pretrain(
    name: Annotated[str, typer.Argument(help="A registered name, or a folder to go on from.")],
    corpus: Annotated[Path, typer.Option(help="A folder that zoo tokenize wrote.")],
    tokenizer: Annotated[str, typer.Option(help="The tokenizer that it was written with: a name or folder.")],
    out: Annotated[Path, typer.Option(help="The folder to write the model into.")],
    steps: Annotated[int, typer.Option(min=1, help="Updates.")],
    length: Annotated[int, typer.Option(min=3, help="Tokens of a block.")] = 128,
    override: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="A config field, name=value. Repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of one update.")] = 1,
    learning_rate: Annotated[float, typer.Option("--lr")] = 1e-4,
    warmup: Annotated[float, typer.Option(min=0, help="A share of the updates, or from 1 on their number.")] = 0.1,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16 arithmetic; weights stay float32.")] = False,
    save_every: Annotated[int, typer.Option(min=1, help="Updates after which a killed run can go on.")] = 1000,
    seed: int = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run in --out stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Teach a model to guess masked words (15 %, as BERT masks them) of a corpus on disk. Started by
    torchrun, each process takes its share of every batch.
    """
    import torch

    from zoo.data.collate import MaskedLMCollator
    from zoo.data.corpus import Corpus, MaskedCorpus
    from zoo.training import fit
    from zoo.training.parallel import copies

    encoder: Any = zoo.tokenizer(tokenizer)
    blocks = Corpus(corpus, length)
    if blocks.vocab_size != encoder.vocab_size:
        raise InputError(
            f"the corpus was written with a vocabulary of {blocks.vocab_size:,}, {tokenizer} has {encoder.vocab_size:,}"
        )
    options = {"vocab_size": encoder.vocab_size, **overrides_of(override)}
    generator = torch.Generator().manual_seed(seed)
    model: Any = (
        zoo.load(name, task="masked-lm", **overrides_of(override))
        if Path(name).exists()
        else zoo.create(name, task="masked-lm", generator=generator, **options)
    )
    collator = MaskedLMCollator(
        mask_id=encoder.mask_token_id, vocab_size=encoder.vocab_size, special_ids=encoder.special_token_ids
    )
    with copies(model) as copied, Bar(quiet=as_json) as bar:
        report = fit(
            copied,
            MaskedCorpus(blocks, collator, batch_size, seed),
            tokenizer=encoder,
            out=out,
            resume=resume,
            on_event=bar,
            steps=steps,
            batch_size=batch_size,
            accumulate=accumulate,
            lr=learning_rate,
            warmup=warmup,
            precision="bfloat16" if bf16 else "float32",
            save_every=save_every,
            seed=seed,
        )
    last = report.history[-1] if report.history else {}
    if as_json:
        print_json({"path": str(out), "steps": report.steps, "blocks": len(blocks), "last": last})
    else:
        print(f"{name}: {report.steps:,} updates over {len(blocks):,} blocks, loss {last['loss']:.4f}; saved in {out}")
