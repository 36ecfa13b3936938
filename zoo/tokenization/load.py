"""From the files of a checkpoint to a ``Tokenizer``: by a spec that names them, or by recognising what lies in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import tokenizers

from zoo.errors import CheckpointError, ConfigError, unknown
from zoo.tokenization import wordpiece
from zoo.tokenization.files import guarded, read_json_object, read_text, read_vocab_lines
from zoo.tokenization.tokenizer import KNOWN_INPUTS, SAVED_BACKEND, SAVED_EXTRAS, NoPreStep, PreStep, SpecialTokens, Tokenizer

MAX_SANE_LENGTH = 1_000_000  # configs write "no limit" as 10^30
ROLE_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}


def load_tokenizer(source: Path | str, spec: Mapping[str, Any] | None = None) -> Tokenizer:
    """Build the tokenizer of a folder, or of one file.

    ``spec`` has one key that names the kind and its file or files (relative to the folder), and options beside it:
    ``{"json": "tokenizer.json"}``, ``{"wordpiece": "vocab.txt", "lower_case": True}``, ``{"smiles": "vocab.txt"}``.
    Without a spec the folder's files decide, and tokenizer_config.json, special_tokens_map.json and config.json beside them.
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
    return KINDS[kinds[0]](folder, spec[kinds[0]], options, hints)


class Hints:
    """What the JSON files beside a vocabulary say about it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer_config = self._read("tokenizer_config.json")
        self.special_map = self._read("special_tokens_map.json")
        self.config = self._read("config.json")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json_object(path) if path.is_file() else {}

    def flag(self, name: str) -> bool | None:
        """A switch of tokenizer_config.json; None where it is absent or null."""
        value = self.tokenizer_config.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{self.folder / 'tokenizer_config.json'}: {name} must be true, false or null, got {value!r}")
        return value

    def token(self, role: str) -> str | None:
        for source in (self.tokenizer_config, self.special_map):
            value = source.get(f"{role}_token")
            if isinstance(value, Mapping):
                value = value.get("content")
            if isinstance(value, str):
                return value
        return None

    def special(self, default: SpecialTokens) -> SpecialTokens:
        return SpecialTokens(**{role: self.token(role) or getattr(default, role) for role in ROLE_NAMES}, pad_id=default.pad_id)

    @property
    def max_length(self) -> int | None:
        value = self.tokenizer_config.get("model_max_length")
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_SANE_LENGTH:
            return value
        return None


def recognise(path: Path, hints: Hints) -> dict[str, Any]:
    """The spec that a folder's files, or one file's name, speak for."""
    names = [SAVED_BACKEND, "vocab.txt"] if path.is_dir() else [path.name]
    for name in names:
        file = hints.folder / name
        if not file.is_file():
            continue
        if name.endswith(".json"):
            return {"json": name}
        if name.endswith(".txt"):
            kind = "smiles" if wordpiece.looks_like_smiles(read_vocab_lines(file)) else "wordpiece"
            return {kind: name}
    raise CheckpointError(f"{path} holds no tokenizer that is known here; looked for {', '.join(names)}")


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


def from_json(folder: Path, name: object, options: dict[str, Any], hints: Hints) -> Tokenizer:
    path = inside(folder, name, "json")
    options = take(options, COMMON, "json")
    text = read_text(path)
    backend = guarded(f"{path} is no tokenizer.json", CheckpointError, lambda: tokenizers.Tokenizer.from_str(text))
    extras_path = folder / SAVED_EXTRAS
    if extras_path.is_file() and path.name == SAVED_BACKEND:
        return from_saved(backend, read_json_object(extras_path), extras_path, options)
    known = {role: next((token for token in names if backend.token_to_id(token) is not None), None) for role, names in ROLE_NAMES.items()}
    special = special_of(
        options, SpecialTokens(pad=known["pad"], cls=known["cls"], sep=known["sep"], mask=known["mask"], unk=known["unk"]), hints
    )
    return Tokenizer(backend, special=special, inputs=inputs_of(backend, hints), max_length=options.get("max_length", hints.max_length))


def inputs_of(backend: tokenizers.Tokenizer, hints: Hints) -> tuple[str, ...]:
    """Which inputs the model takes: what the config says, or segments exactly where a pair would get a segment other than 0."""
    declared = hints.tokenizer_config.get("model_input_names")
    if isinstance(declared, list) and "input_ids" in declared:
        return tuple(name for name in KNOWN_INPUTS if name in declared)
    if backend.post_processor is None:
        return KNOWN_INPUTS[:2]
    pair = guarded("a pair cannot be encoded", CheckpointError, lambda: backend.encode("a", "a"))
    return KNOWN_INPUTS if any(pair.type_ids) else KNOWN_INPUTS[:2]


PRE_STEPS: dict[str, Callable[[Mapping[str, Any]], PreStep]] = {"none": lambda options: NoPreStep()}


def from_saved(backend: tokenizers.Tokenizer, extras: Mapping[str, Any], path: Path, options: Mapping[str, Any]) -> Tokenizer:
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
    if not roles.issuperset(special) or not all(isinstance(value, int if role == "pad_id" else str) for role, value in special.items()):
        raise CheckpointError(f"{path}: special must give strings to {', '.join(sorted(roles))}, got {special!r}")
    return Tokenizer(
        backend, special=SpecialTokens(**special), pre_step=PRE_STEPS[name](step_options), inputs=inputs, max_length=max_length
    )


KINDS: dict[str, Callable[[Path, object, dict[str, Any], Hints], Tokenizer]] = {
    "json": from_json,
    "wordpiece": from_wordpiece,
    "smiles": from_smiles,
}

__all__ = ["load_tokenizer"]
