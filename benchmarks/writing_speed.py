"""How fast encoder-decoders write, beside transformers, one after the other so that a busy machine slows
both:

    python -m benchmarks.writing_speed [bart-base ...] [--tokens 64] [--repeats 5] [--layers 2] [--json out.json]

Random weights, so no text ends by itself: every one has the same number of tokens. Batches: one source,
and 16 of ragged lengths; greedy and 4 beams; as loaded, and prepared by `zoo.optimize` in float32 and
int8. With --ctranslate2, CTranslate2 in float32 and int8 as well (the extra `bench` has it).
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor

import zoo
from benchmarks.timing import machine
from tests import oracle

CLASSES = {
    "bart": ("hf-bart", "BartForConditionalGeneration"),
    "mbart": ("hf-mbart", "MBartForConditionalGeneration"),
}


def sources(rows: int, longest: int, vocabulary: int) -> dict[str, Tensor]:
    """Ids and mask; lengths from an eighth of the longest on."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(longest // 8, longest, rows).long() if rows > 1 else torch.tensor([longest])
    real = torch.arange(longest) < lengths[:, None]
    ids = torch.randint(4, vocabulary, (rows, longest), generator=generator)
    return {"input_ids": ids.masked_fill(~real, 1), "attention_mask": real.long()}


def writers(name: str, layers: int | None) -> dict[str, Any]:
    """Ours, as loaded and prepared, and transformers' with the same weights."""
    few = {} if layers is None else {"num_layers": layers, "decoder_num_layers": layers}
    ours = zoo.create(name, task="conditional-generation", start_token_id=2, **few).eval()
    layout, class_name = CLASSES[name.partition("-")[0]]
    theirs = oracle.hugging_face(layout, class_name, ours.config, {}).float()
    theirs.config._attn_implementation = "sdpa"
    oracle.taught(layout, theirs, ours)
    found = {"transformers": theirs.eval(), "zoo": ours, "zoo, prepared": zoo.optimize(ours)}
    return {**found, "zoo, int8": zoo.optimize(ours, "int8")}


class CTranslate2:
    """The same model there; its tokens are called by their ids, since it is given no tokenizer."""

    def __init__(self, theirs: Any, compute_type: str, threads: int) -> None:
        import ctranslate2
        import tokenizers
        import transformers

        words = [f"{number}" for number in range(theirs.config.vocab_size)]
        backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="3"))
        self.prefix = ["2"] if theirs.config.model_type == "mbart" else None  # BART's config names its start itself
        theirs.config.normalize_before = theirs.config.model_type == "mbart"  # which the converter asks for
        named = {"unk_token": "3", "pad_token": "1", "eos_token": "2", "bos_token": "0"}
        with tempfile.TemporaryDirectory() as folder:
            theirs.save_pretrained(f"{folder}/model")
            transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named).save_pretrained(f"{folder}/model")
            converter = ctranslate2.converters.TransformersConverter(f"{folder}/model")
            self.model = ctranslate2.Translator(
                converter.convert(f"{folder}/ct2"), compute_type=compute_type, intra_threads=threads
            )

    def write(self, given: dict[str, Tensor], beams: int, tokens: int) -> None:
        texts = [
            [str(int(i)) for i, real in zip(ids, mask, strict=True) if real]
            for ids, mask in zip(given["input_ids"], given["attention_mask"], strict=True)
        ]
        prefixes = None if self.prefix is None else [self.prefix] * len(texts)
        begun = self.prefix is not None  # which counts there
        limits = {"min_decoding_length": tokens + begun, "max_decoding_length": tokens + begun}
        found = self.model.translate_batch(texts, prefixes, beam_size=beams, **limits)
        written = {len(result.hypotheses[0]) - begun for result in found}
        if written != {tokens}:
            raise SystemExit(f"CTranslate2 wrote texts of {sorted(written)} tokens, not of {tokens}")


def writing(model: Any, given: dict[str, Tensor], beams: int, tokens: int) -> Callable[[], object]:
    """One text for each source, of so many tokens."""
    if isinstance(model, CTranslate2):
        return lambda: model.write(given, beams, tokens)
    if isinstance(model, zoo.Model) or (hasattr(model, "model") and isinstance(model.model, zoo.Model)):
        return lambda: zoo.generate(model, given, num_beams=beams, max_new_tokens=tokens, suppress_tokens=[2])
    named = {"num_beams": beams, "max_new_tokens": tokens, "do_sample": False, "decoder_start_token_id": 2}
    named |= {"suppress_tokens": [2], "forced_eos_token_id": None, "forced_bos_token_id": None}
    return lambda: model.generate(**given, **named)


def late(model: Any, given: dict[str, Tensor], token: int, around: int = 8) -> dict[str, float]:
    """Milliseconds of a greedy text's token 64 and of a later one, each the median of those around it, and the greatest
    memory of the process so far in MB.
    """
    times: list[float] = []
    settings = {"max_new_tokens": token + around, "suppress_tokens": [2]}
    zoo.generate(model, given, streamer=lambda source, token: times.append(time.perf_counter()), **settings)
    taken = [1000 * (after - before) for before, after in pairwise(times)]
    early, at = (median(taken[n - around : n + around]) for n in (64, token))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "token 64": round(early, 2),
        f"token {token}": round(at, 2),
        "times": round(at / early, 2),
        "MB": round(memory),
    }


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writing_speed", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=["bart-base"])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--longest", type=int, default=128, help="tokens of the longest source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, help="of each side; all by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--late", type=int, help="compare the time of this token with that of token 64, nothing else")
    parser.add_argument("--ctranslate2", action="store_true", help="CTranslate2 too")
    parser.add_argument("--json", help="write the figures here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for name in given.names:
        models = writers(name, given.layers)
        if given.ctranslate2:
            for kind in ("float32", "int8"):
                models[f"ctranslate2 {kind}"] = CTranslate2(models["transformers"], kind, given.threads)
        if given.late:
            source = sources(1, given.longest, models["zoo"].config.vocab_size)
            for kind in ("zoo", "zoo, prepared", "zoo, int8"):
                found = late(models[kind], source, given.late)
                rows.append({"model": name, "writer": kind, **found})
                print(name, kind, found, sep="\t", flush=True)
        for batch in () if given.late else (1, 16):
            source = sources(batch, given.longest, models["zoo"].config.vocab_size)
            for beams in (1, 4):
                runs = {kind: writing(model, source, beams, given.tokens) for kind, model in models.items()}
                times: dict[str, list[float]] = {kind: [] for kind in runs}
                for turn in range(given.repeats + 1):  # the first warms up
                    for kind, run in runs.items():
                        taken = seconds(run)
                        if turn:
                            times[kind].append(taken)
                theirs = median(times["transformers"])
                for kind, taken in times.items():
                    each = median(taken)
                    row = {"model": name, "sources": batch, "beams": beams, "writer": kind, "seconds": round(each, 3)}
                    row |= {"tokens/s": round(batch * given.tokens / each, 1), "times": round(theirs / each, 2)}
                    rows.append(row)
                    print(*row.values(), sep="\t", flush=True)
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
