"""A tokenizer with fewer tokens that cuts the texts it was kept for exactly as before.

    WordPiece   the longest match is kept, longer ones were no tokens before either
    Unigram     the best path is kept; the piece of the lowest score too, from which the price of an
                unknown character is reckoned
    BPE         every merge on the way to a kept token is kept, in its rank; so are single characters
    word list   as it is

Tokens keep their order, so an id becomes its rank among those that stay.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import InputError
from zoo.tokenization.load import load_tokenizer
from zoo.tokenization.tokenizer import SAVED_BACKEND, SAVED_EXTRAS, Tokenizer


def trim_tokenizer(tokenizer: Tokenizer, ids: Iterable[int]) -> tuple[Tokenizer, list[int]]:
    """A tokenizer of the tokens ``ids`` and of what these need, and the old ids that stayed, in
    order: the new id is the place there.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save(folder)
        saved = json.loads((folder / SAVED_BACKEND).read_text(encoding="utf-8"))
        kept = sorted(_needed(saved, tokenizer, set(map(int, ids))))
        rank = {old: new for new, old in enumerate(kept)}
        (folder / SAVED_BACKEND).write_text(json.dumps(_trimmed(saved, rank), ensure_ascii=False), encoding="utf-8")
        extras = json.loads((folder / SAVED_EXTRAS).read_text(encoding="utf-8"))
        if "pad_id" in extras["special"]:
            extras["special"]["pad_id"] = rank[extras["special"]["pad_id"]]
        (folder / SAVED_EXTRAS).write_text(json.dumps(extras, ensure_ascii=False), encoding="utf-8")
        return load_tokenizer(folder), kept


def tokens_of(tokenizer: Tokenizer, texts: Iterable[str], least: int = 1) -> set[int]:
    """The ids that the texts are cut into, those that occur at least so often."""
    counts: dict[int, int] = {}
    for text in texts:
        for index in tokenizer.encode(text).ids:
            counts[index] = counts.get(index, 0) + 1
    return {index for index, count in counts.items() if count >= least}


def first_difference(
    old: Tokenizer, new: Tokenizer, kept: Sequence[int], texts: Iterable[str]
) -> tuple[int, str | None]:
    """How many texts lie wholly in the kept tokens, and the first of them that the two cut
    differently (None: they agree on all).
    """
    rank = {index: place for place, index in enumerate(kept)}
    held = 0
    for text in texts:
        ids = old.encode(text).ids
        if any(index not in rank for index in ids):
            continue
        held += 1
        if [rank[index] for index in ids] != new.encode(text).ids:
            return held, text
    return held, None


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model.get("type") == "Unigram":
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _needed(saved: Mapping[str, Any], tokenizer: Tokenizer, wanted: set[int]) -> set[int]:
    """The wanted ids, the special tokens, and what the model needs to go the same ways to them."""
    model = saved["model"]
    vocabulary = _vocabulary(model)
    known = {*vocabulary.values(), *(token["id"] for token in saved["added_tokens"])}
    if strange := sorted(wanted - known):
        raise InputError(f"the ids {strange[:3]} are no tokens of this tokenizer, whose ids end at {max(known)}")
    needed = wanted | {token["id"] for token in saved["added_tokens"]} | set(tokenizer.special_token_ids)
    if isinstance(unknown := model.get("unk_token"), str) and unknown in vocabulary:
        needed.add(vocabulary[unknown])
    if (pad := tokenizer.pad_token_id) is not None:
        needed |= {index for index in known if index <= pad}  # padding stays where position tables look for it
    kind = model.get("type")
    if kind == "Unigram":
        if model.get("unk_id") is not None:
            needed.add(model["unk_id"])
        needed.add(min(range(len(model["vocab"])), key=lambda index: model["vocab"][index][1]))
    if model.get("byte_fallback"):
        needed |= {index for token, index in vocabulary.items() if re.fullmatch("<0x..>", token)}
    if kind == "BPE":
        needed |= _ways(model, vocabulary, needed)
    elif kind not in ("WordPiece", "Unigram", "WordLevel"):
        raise InputError(
            f"a tokenizer of the kind {kind!r} can't be trimmed; WordPiece, Unigram, BPE and WordLevel can"
        )
    return needed


def _pair(merge: Any) -> tuple[str, str]:
    """The two sides of a merge as tokenizer.json writes it."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _joined(model: Mapping[str, Any], merge: Any) -> str:
    first, second = _pair(merge)
    prefix = model.get("continuing_subword_prefix") or ""
    return first + second.removeprefix(prefix)


def _ways(model: Mapping[str, Any], vocabulary: Mapping[str, int], wanted: set[int]) -> set[int]:
    """Every token from which merges lead to a wanted one, and all single characters."""
    tokens = {index: token for token, index in vocabulary.items()}
    ways: dict[str, list[tuple[str, str]]] = {}
    for merge in model["merges"]:
        ways.setdefault(_joined(model, merge), []).append(_pair(merge))
    suffix, prefix = model.get("end_of_word_suffix") or "", model.get("continuing_subword_prefix") or ""
    found = {token for token in vocabulary if len(token.removesuffix(suffix).removeprefix(prefix)) == 1}
    stack = [tokens[index] for index in wanted if index in tokens]
    while stack:
        token = stack.pop()
        if token not in found or token in ways:
            found.add(token)
            stack += [part for pair in ways.pop(token, ()) for part in pair]
    return {vocabulary[token] for token in found if token in vocabulary}


def _trimmed(saved: dict[str, Any], rank: Mapping[int, int]) -> dict[str, Any]:
    model = dict(saved["model"])
    if model["type"] == "Unigram":
        model["vocab"] = [entry for index, entry in enumerate(model["vocab"]) if index in rank]
        if model.get("unk_id") is not None:
            model["unk_id"] = rank[model["unk_id"]]
    else:
        model["vocab"] = {token: rank[index] for token, index in model["vocab"].items() if index in rank}
    if model["type"] == "BPE":
        stay = model["vocab"]
        model["merges"] = [
            m for m in model["merges"] if _joined(model, m) in stay and all(part in stay for part in _pair(m))
        ]
    added = [{**token, "id": rank[token["id"]]} for token in saved["added_tokens"]]
    return {
        **saved,
        "model": model,
        "added_tokens": added,
        "post_processor": _post_processor(saved["post_processor"], rank),
    }


def _post_processor(step: Any, rank: Mapping[int, int]) -> Any:
    """The frame with its ids renumbered, whatever its kind."""
    if not isinstance(step, dict):
        return step
    new = dict(step)
    if step["type"] == "Sequence":
        new["processors"] = [_post_processor(inner, rank) for inner in step["processors"]]
    elif step["type"] == "TemplateProcessing":
        new["special_tokens"] = {
            name: {**token, "ids": [rank[index] for index in token["ids"]]}
            for name, token in step["special_tokens"].items()
        }
    elif step["type"] in ("BertProcessing", "RobertaProcessing"):
        for role in ("sep", "cls"):
            new[role] = [step[role][0], rank[step[role][1]]]
    return new
