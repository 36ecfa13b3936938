"""From the files of a checkpoint to a ``Tokenizer``: by a spec that names them, or by recognising
what lies in a folder.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tokenizers

from zoo.errors import CheckpointError, ConfigError, unknown
from zoo.formats.limits import check_json
from zoo.formats.plain_json import parse_json
from zoo.tokenization import bpe, chinese, sentence_piece, wordpiece, xlm
from zoo.tokenization.files import (
    MAX_VALUES,
    guarded,
    read_json_object,
    read_text,
    read_vocab_json,
    read_vocab_lines,
)
from zoo.tokenization.growth import check_growth
from zoo.tokenization.hints import ROLE_NAMES, Hints, add_tokens, apply_options, lower_texts, roles_among
from zoo.tokenization.sentencepiece_file import (
    CONTROL,
    USER_DEFINED,
    SentencePieceModel,
    read_sentencepiece,
    rules_of,
)
from zoo.tokenization.tokenizer import (
    KNOWN_INPUTS,
    SAVED_BACKEND,
    SAVED_EXTRAS,
    NoPreStep,
    PreStep,
    SpecialTokens,
    Tokenizer,
)

PAIRS = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def load_tokenizer(source: Path | str, spec: Mapping[str, Any] | None = None) -> Tokenizer:
    """Build the tokenizer of a folder, or of one file.

    ``spec`` has one key that names the kind and its file or files (relative to the folder), and
    options beside it: ``{"json": "tokenizer.json"}``, ``{"wordpiece": "vocab.txt", "lower_case":
    True}``, ``{"smiles": "vocab.txt"}``, ``{"sentencepiece": "spiece.model", "rules": "albert" |
    "rembert" | "xlm-roberta" | "mbart" | "mbart-50" | "cpm" | "plain"}``, mBART's with ``"language":
    "ro_RO"`` for the language of the texts, ``{"bpe": ["vocab.json", "merges.txt"], "rules": "gpt2" | "roberta"
    | "clip"}``, with ``"dict": "dict.txt"`` for fairseq's id order, ``{"clip":
    "bpe_simple_vocab_16e6.txt.gz"}``, ``{"fairseq": "dict.txt", "level": "word" | "character"}``,
    ``{"xlm": {"vocab": "vocab.json", "merges": "merges.txt"}, "language": "en"}`` or ``{"xlm":
    {"codes": ..., "vocab": ...}}``. Without a spec the folder's files decide, and
    tokenizer_config.json, special_tokens_map.json and config.json beside them.
    """
    path = Path(source)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a folder with tokenizer files, or one such file")
    folder = path if path.is_dir() else path.parent
    hints = Hints(folder)
    if spec is None:
        spec = recognise(path, hints)
    kinds = [key for key in spec if key in KINDS]
    if len(kinds) != 1:
        raise ConfigError(f"a tokenizer spec names one kind of {', '.join(sorted(KINDS))}; got {dict(spec)!r}")
    options = {key: value for key, value in spec.items() if key != kinds[0]}
    tokenizer = KINDS[kinds[0]](folder, spec[kinds[0]], options, hints)
    if not (kinds[0] == "json" and saved_by_us(folder, spec["json"])):
        add_tokens(tokenizer, hints)
        tokenizer.truncation_side = hints.truncation_side or tokenizer.truncation_side
        lower_texts(tokenizer, hints)
    return tokenizer


def saved_by_us(folder: Path, name: object) -> bool:
    """Whether ``Tokenizer.save`` wrote the tokenizer.json and what stands beside it."""
    return name == SAVED_BACKEND and (folder / SAVED_EXTRAS).is_file()


def recognise(path: Path, hints: Hints) -> dict[str, Any]:
    """The spec that a folder's files, or one file's name, speak for."""
    folder = hints.folder
    names = sorted(file.name for file in folder.iterdir() if file.is_file()) if path.is_dir() else [path.name]
    has = set(names).issuperset
    if has({SAVED_BACKEND}):
        return {"json": SAVED_BACKEND}
    for name in names:
        if name.endswith(".model"):
            return {"sentencepiece": name}
    for vocab, merges in PAIRS:
        if has({vocab, merges}):
            ordered = vocab == "encoder.json" and has({"dict.txt"})  # in fairseq's order
            return {"bpe": [vocab, merges], **({"dict": "dict.txt"} if ordered else {})}
    for codes in names:
        if codes.startswith("codes") and has({"vocab" + codes.removeprefix("codes")}):
            return {"xlm": {"codes": codes, "vocab": "vocab" + codes.removeprefix("codes")}}
    for name in names:
        if name.startswith("bpe_simple_vocab"):
            return {"clip": name}
    if has({"vocab.txt"}) or (not path.is_dir() and path.suffix == ".txt" and path.name != "dict.txt"):
        name = "vocab.txt" if has({"vocab.txt"}) else path.name
        return {"smiles" if wordpiece.looks_like_smiles(read_vocab_lines(folder / name)) else "wordpiece": name}
    if has({"dict.txt"}):
        return {"fairseq": "dict.txt"}
    if not path.is_dir() and path.suffix == ".json":
        return {"json": path.name}
    raise CheckpointError(
        f"{path} holds no tokenizer that is known here; looked for tokenizer.json, *.model, "
        f"{', '.join(' + '.join(pair) for pair in PAIRS)}, codes + vocab, bpe_simple_vocab*, vocab.txt and dict.txt"
    )


def take(options: Mapping[str, Any], allowed: Mapping[str, tuple[type, ...]], kind: str) -> dict[str, Any]:
    """The options of a spec, each of a known name and type."""
    for name, value in options.items():
        if name not in allowed:
            raise unknown(f"option of a {kind} tokenizer", name, allowed)
        if not isinstance(value, allowed[name]) or (isinstance(value, bool) and bool not in allowed[name]):
            wanted = " or ".join(kind.__name__ for kind in allowed[name])
            raise ConfigError(f"the option {name} of a tokenizer must be {wanted}, got {value!r}")
    return dict(options)


def inside(folder: Path, name: object, kind: str) -> Path:
    """A file that a spec names, which must lie in the folder."""
    if not isinstance(name, str):
        raise ConfigError(f"the {kind} entry of a tokenizer spec must name a file, got {name!r}")
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ConfigError(f"the {kind} entry of a tokenizer spec must name a file inside the folder, got {name!r}")
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    return path


def special_of(options: dict[str, Any], default: SpecialTokens, hints: Hints) -> SpecialTokens:
    """Roles by the spec, then by the files beside, then by the family."""
    found = hints.special(default)
    named = options.pop("special", {})
    known = [field.name for field in fields(SpecialTokens)]
    for role in named:
        if role not in known:
            raise unknown("role of a special token", role, known)
    return SpecialTokens(**{role: named.get(role, getattr(found, role)) for role in known})


COMMON: dict[str, tuple[type, ...]] = {"special": (Mapping,), "max_length": (int,)}  # type: ignore[type-abstract]


def from_wordpiece(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "wordpiece")
    options = take(options, COMMON | {"lower_case": (bool,), "strip_accents": (bool,), "chinese": (bool,)}, "wordpiece")
    special = special_of(options, wordpiece.BERT_SPECIAL, hints)
    chinese = hints.flag("tokenize_chinese_chars")
    return wordpiece.wordpiece(
        read_vocab_lines(path),
        lower_case=options.get("lower_case", hints.flag("do_lower_case")),
        strip_accents=options.get("strip_accents", hints.flag("strip_accents")),
        chinese=options.get("chinese", True if chinese is None else chinese),
        special=special,
        max_length=options.get("max_length", hints.max_length),
        what=str(path),
    )


def from_smiles(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "smiles")
    options = take(options, COMMON | {"pattern": (str,)}, "smiles")
    special = special_of(options, wordpiece.BERT_SPECIAL, hints)
    return wordpiece.smiles(
        read_vocab_lines(path),
        pattern=options.get("pattern", "rxnfp"),
        special=special,
        max_length=options.get("max_length", hints.max_length),
        what=str(path),
    )


# the rules for a .model, and the options that go with each
SENTENCEPIECE_RULES = {
    "plain": {"frame", "special"},
    "cpm": {"special"},
    "albert": {"lower_case", "keep_accents", "digit_comma", "special"},
    "rembert": {"lower_case", "keep_accents", "special"},
    "xlm-roberta": set(),
    "mbart": {"language"},
    "mbart-50": {"language"},
}


def sentencepiece_rules(model: SentencePieceModel, name: str, hints: Hints) -> str:
    """The rules that the files beside a .model, its own pieces or its name speak for."""
    if hints.speaks_of("mbart", "mbart50"):
        # fairseq's order puts one piece in front; mBART-50 has 52 languages and <mask> behind
        fifty = hints.config.get("vocab_size") == len(model.pieces) + 1 + 52 + 1
        return "mbart-50" if hints.speaks_of("mbart50") or fifty else "mbart"
    for family in ("albert", "rembert", "cpm"):
        if hints.speaks_of(family):
            return family
    if hints.speaks_of("xlm-roberta", "xlm-roberta-xl", "xlmroberta") or name == "sentencepiece.bpe.model":
        return "xlm-roberta"
    fixed = {piece for piece, kind in zip(model.pieces, model.types, strict=True) if kind in (CONTROL, USER_DEFINED)}
    return "plain" if hints.family or not fixed.issuperset({"[CLS]", "[SEP]", "[MASK]"}) else "albert"


def from_sentencepiece(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "sentencepiece")
    switches = dict.fromkeys(("lower_case", "keep_accents", "digit_comma"), (bool,))
    words = dict.fromkeys(("rules", "frame", "language"), (str,))
    options = take(options, {**COMMON, **switches, **words}, "sentencepiece")
    model = read_sentencepiece(path)
    rules = options.get("rules") or sentencepiece_rules(model, path.name, hints)
    space = hints.flag("add_prefix_space")
    if space is not None and rules in ("albert", "rembert", "xlm-roberta"):
        model = replace(model, add_dummy_prefix=space)
    if rules not in SENTENCEPIECE_RULES:
        raise unknown("rules for a sentencepiece tokenizer", rules, SENTENCEPIECE_RULES)
    for option in options:
        if option not in SENTENCEPIECE_RULES[rules] | {"rules", "max_length"}:
            raise ConfigError(f"the option {option} does not go with the rules {rules!r} of a sentencepiece tokenizer")
    max_length = options.get("max_length", hints.max_length)
    if rules == "xlm-roberta":
        return sentence_piece.xlm_roberta(model, max_length=max_length)
    if rules.startswith("mbart"):
        language = options.get("language") or hints.word("src_lang") or "en_XX"
        fifty = rules == "mbart-50"
        return sentence_piece.mbart(model, language=language, fifty=fifty, max_length=max_length)
    default = replace(roles_among(model.pieces.__contains__), unk=model.pieces[model.unk_id])
    special = special_of(options, default, hints)
    if rules in ("plain", "cpm"):
        absent = [role for role in ROLE_NAMES if getattr(special, role) not in model.pieces]
        special = replace(special, **dict.fromkeys(absent), pad_id=None)
        if rules == "cpm":
            return chinese.cpm(model, special=special, max_length=max_length)
        return sentence_piece.plain(model, frame=options.get("frame", "none"), special=special, max_length=max_length)
    lower, keep = hints.flag("do_lower_case"), hints.flag("keep_accents")
    if rules == "rembert":
        return sentence_piece.rembert(
            model,
            lower_case=options.get("lower_case", bool(lower)),
            keep_accents=options.get("keep_accents", True if keep is None else keep),
            special=special,
            max_length=max_length,
        )
    return sentence_piece.albert(
        model,
        lower_case=options.get("lower_case", True if lower is None else lower),
        keep_accents=options.get("keep_accents", bool(keep)),
        digit_comma=options.get("digit_comma", True),
        special=special,
        max_length=max_length,
    )


BPE_RULES = ("gpt2", "roberta", "clip", "xlm")


def from_bpe(folder: Path, names: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) != 2:
        raise ConfigError(f"the bpe entry of a tokenizer spec names a vocabulary and a merges file, got {names!r}")
    path, merges_path = (inside(folder, name, "bpe") for name in names)
    options = take(options, {"max_length": (int,), "rules": (str,), "dict": (str,), "special": (Mapping,)}, "bpe")  # type: ignore[type-abstract]
    rules = options.get("rules")
    vocab = read_vocab_json(path)
    max_length = options.get("max_length", hints.max_length)
    if rules is None:
        if "dict" in options or hints.speaks_of("roberta"):
            rules = "roberta"
        elif hints.speaks_of("clip") or bpe.CLIP_START in vocab:
            rules = "clip"
        elif hints.speaks_of("xlm") or "<special1>" in vocab:
            rules = "xlm"
        else:
            rules = "roberta" if "<s>" in vocab and "</s>" in vocab else "gpt2"
    if rules not in BPE_RULES:
        raise unknown("rules for a bpe tokenizer", rules, BPE_RULES)
    if "special" in options and rules != "roberta":
        raise ConfigError(f"the option special does not go with the rules {rules!r} of a bpe tokenizer")
    if rules == "xlm":
        files = {"vocab": names[0], "merges": names[1]}
        return from_xlm(folder, files, {"max_length": max_length} if max_length else {}, hints)
    merges = bpe.read_merges(merges_path)
    if "dict" in options:
        symbols = bpe.read_fairseq_dictionary(inside(folder, options["dict"], "dict"))
        vocab = bpe.reorder(vocab, symbols, options["dict"])
    if rules == "clip":
        return bpe.clip(vocab, merges, max_length=max_length or bpe.CLIP_LENGTH, what=str(path))
    space = bool(hints.flag("add_prefix_space"))
    if rules == "gpt2":
        return bpe.gpt2(vocab, merges, add_prefix_space=space, max_length=max_length, what=str(path))
    special = special_of(options, bpe.ROBERTA_SPECIAL, hints)
    return bpe.roberta(vocab, merges, add_prefix_space=space, special=special, max_length=max_length, what=str(path))


def from_clip(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "clip")
    options = take(options, {"max_length": (int,)}, "clip")
    merges = bpe.parse_merges(bpe.read_gzip_lines(path), str(path))[: bpe.CLIP_MERGES]
    max_length = options.get("max_length", bpe.CLIP_LENGTH)
    return bpe.clip(bpe.clip_vocabulary(merges), merges, max_length=max_length, what=str(path))


def from_fairseq(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "fairseq")
    options = take(options, {"max_length": (int,), "level": (str,), "mask": (bool,)}, "fairseq")
    symbols = bpe.read_fairseq_dictionary(path)
    level = options.get("level", "character" if all(len(symbol) == 1 for symbol in symbols) else "word")
    return bpe.word_list(
        symbols, level=level, mask=options.get("mask", True), max_length=options.get("max_length", hints.max_length)
    )


def from_xlm(folder: Path, files: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    options = take(options, {"max_length": (int,), "language": (str,), "lower_case": (bool,), "ends": (str,)}, "xlm")
    if not isinstance(files, Mapping) or set(files) not in ({"vocab", "merges"}, {"vocab", "codes"}):
        raise ConfigError(
            "the xlm entry of a tokenizer spec names vocab and merges (hub) or vocab and codes (original), got "
            f"{files!r}"
        )
    original = "codes" in files
    path = inside(folder, files["vocab"], "xlm")
    lower = hints.flag("do_lowercase_and_remove_accent")
    return xlm.xlm(
        xlm.read_original_vocabulary(path) if original else read_vocab_json(path),
        bpe.read_merges(inside(folder, files["codes" if original else "merges"], "xlm")),
        language=options.get("language", "en"),
        lower_case=options.get("lower_case", True if lower is None else lower),
        ends=options.get("ends", "original" if original else "hub"),
        max_length=options.get("max_length", hints.max_length),
        what=str(path),
    )


def from_json(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "json")
    options = take(options, COMMON, "json")
    text = read_text(path)
    check_json(text, str(path), MAX_VALUES)
    backend = guarded(f"{path} is no tokenizer.json", CheckpointError, lambda: tokenizers.Tokenizer.from_str(text))
    check_growth(backend, str(path))
    for table in charsmaps_of(backend):  # a forged table is met here and not in the middle of a text
        rules_of(table)
    extras_path = folder / SAVED_EXTRAS
    if saved_by_us(folder, name):
        return from_saved(backend, read_json_object(extras_path), extras_path, options)
    apply_options(backend, hints)
    known = roles_among(lambda token: backend.token_to_id(token) is not None)
    special, max_length = special_of(options, known, hints), options.get("max_length", hints.max_length)
    side = "left" if (backend.truncation or {}).get("direction") == "left" else "right"
    inputs = inputs_of(backend, hints)
    return Tokenizer(backend, special=special, inputs=inputs, max_length=max_length, truncation_side=side)


def charsmaps_of(backend: tokenizers.Tokenizer) -> list[bytes]:
    """The SentencePiece tables inside a backend's normalizer."""
    found: list[bytes] = []
    waiting: list[Any] = []
    if backend.normalizer is not None:
        waiting.append(parse_json(backend.normalizer.__getstate__().decode("utf-8"), "the normalizer"))
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if part.get("type") == "Precompiled":
                found.append(base64.b64decode(part["precompiled_charsmap"]))
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def inputs_of(backend: tokenizers.Tokenizer, hints: Hints) -> tuple[str, ...]:
    """Which inputs the model takes: what the config says, or segments exactly where a pair would
    get a segment other than 0.
    """
    declared = hints.tokenizer_config.get("model_input_names")
    if isinstance(declared, list) and "input_ids" in declared:
        return tuple(name for name in KNOWN_INPUTS if name in declared)
    if backend.post_processor is None:
        return KNOWN_INPUTS[:2]
    pair = guarded("a pair cannot be encoded", CheckpointError, lambda: backend.encode("a", "a"))
    return KNOWN_INPUTS if any(pair.type_ids) else KNOWN_INPUTS[:2]


def _saved_longest_match(options: Mapping[str, Any], backend: tokenizers.Tokenizer) -> sentence_piece.LongestMatch:
    tables = charsmaps_of(backend)
    if len(tables) != 1:
        raise CheckpointError(
            f"the saved tokenizer names a pre-step by SentencePiece's table; its normalizer has {len(tables)} tables "
            "instead of one"
        )
    return sentence_piece.LongestMatch(rules_of(tables[0]), [str(text) for text in options["keep"]])


def _saved_words(options: Mapping[str, Any], backend: tokenizers.Tokenizer) -> PreStep:
    return chinese.SpacedWords(None if options["keep"] is None else _saved_longest_match(options, backend))


def _saved_xlm(options: Mapping[str, Any], backend: tokenizers.Tokenizer) -> PreStep:
    merges = bpe.parse_merges([str(line) for line in options["merges"]], "the saved tokenizer")
    return xlm.XlmSteps(merges, str(options["language"]), bool(options["lower_case"]))


PRE_STEPS: dict[str, Callable[[Mapping[str, Any], tokenizers.Tokenizer], PreStep]] = {
    "none": lambda options, backend: NoPreStep(),
    "albert": lambda options, backend: sentence_piece.DigitComma(backend),
    "clip": lambda options, backend: bpe.CleanCaption(),
    "cpm": _saved_words,
    "sentencepiece": _saved_longest_match,
    "xlm": _saved_xlm,
}


def from_saved(
    backend: tokenizers.Tokenizer, extras: Mapping[str, Any], path: Path, options: Mapping[str, Any]
) -> Tokenizer:
    """The folder that ``Tokenizer.save`` wrote."""
    try:
        step, special, inputs = extras["pre_step"], dict(extras["special"]), list(extras["inputs"])
        name, step_options = step["name"], dict(step["options"])
        max_length = options.get("max_length", extras["max_length"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not what a saved tokenizer brings: {error!r}") from error
    if extras.get("version") != 1:
        raise CheckpointError(f"{path} has version {extras.get('version')!r}; this library reads version 1")
    if name not in PRE_STEPS:
        raise unknown("tokenizer pre-step", name, PRE_STEPS)
    if max_length is not None and (isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1):
        raise CheckpointError(f"{path}: max_length must be a whole number above 0 or null, got {max_length!r}")
    roles = {field.name for field in fields(SpecialTokens)}
    typed = all(isinstance(value, int if role == "pad_id" else str) for role, value in special.items())
    if not typed or not roles.issuperset(special):
        raise CheckpointError(f"{path}: special must give strings to {', '.join(sorted(roles))}, got {special!r}")
    try:
        pre_step = PRE_STEPS[name](step_options, backend)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the pre-step {name!r} cannot be built from its options: {error!r}") from error
    side = extras.get("truncation_side", "right")
    if side not in ("left", "right"):
        raise CheckpointError(f"{path}: truncation_side must be 'left' or 'right', got {side!r}")
    return Tokenizer(
        backend,
        special=SpecialTokens(**special),
        pre_step=pre_step,
        inputs=inputs,
        max_length=max_length,
        truncation_side=side,
    )


KINDS: dict[str, Callable[[Path, object, dict[str, Any], Hints], Tokenizer]] = {
    "json": from_json,
    "wordpiece": from_wordpiece,
    "smiles": from_smiles,
    "sentencepiece": from_sentencepiece,
    "bpe": from_bpe,
    "clip": from_clip,
    "fairseq": from_fairseq,
    "xlm": from_xlm,
}

__all__ = ["load_tokenizer"]
