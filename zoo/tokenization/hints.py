"""What the JSON files beside a vocabulary say about it: tokenizer_config.json, special_tokens_map.json,
added_tokens.json and config.json, read in the order in which transformers believes them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers

from zoo.errors import CheckpointError
from zoo.tokenization.files import MAX_ENTRIES, encodable, guarded, parse_json, read_json_object
from zoo.tokenization.sentence_piece import DigitComma, LongestMatch
from zoo.tokenization.tokenizer import NoPreStep, SpecialTokens, Tokenizer

MAX_SANE_LENGTH = 1_000_000  # configs write "no limit" as 10^30
ROLE_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "unk": ("[UNK]", "<unk>"),
}
# classes of transformers that take a tokenizer.json as it is, whatever tokenizer_config.json says of case and accents
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend")
METASPACE_FAMILIES = ("albert", "rembert", "xlm-roberta", "xlm-roberta-xl", "xlmroberta")


class Hints:
    """What the JSON files beside a vocabulary say about it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokenizer_config = self._read("tokenizer_config.json")
        self.special_map = self._read("special_tokens_map.json")
        self.added_tokens = self._read("added_tokens.json")
        self.config = self._read("config.json")
        self.sentence_config = self._read("sentence_bert_config.json")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return read_json_object(path) if path.is_file() else {}

    def flag(self, name: str) -> bool | None:
        """A switch of tokenizer_config.json; None where it is absent or null."""
        value = self.tokenizer_config.get(name)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(
                f"{self.folder / 'tokenizer_config.json'}: {name} must be true, false or null, got {value!r}"
            )
        return value

    def word(self, name: str) -> str | None:
        """A string of tokenizer_config.json; None where it is absent or null."""
        value = self.tokenizer_config.get(name)
        if value is not None and not isinstance(value, str):
            raise CheckpointError(f"{self.folder / 'tokenizer_config.json'}: {name} must be a string, got {value!r}")
        return value

    def token(self, role: str) -> str | None:
        sources = [self.special_map, self.tokenizer_config]
        if "added_tokens_decoder" in self.tokenizer_config:
            sources.reverse()
        for source in sources:
            value = source.get(f"{role}_token")
            if isinstance(value, Mapping):
                value = value.get("content")
            if isinstance(value, str):
                return value
        return None

    def special(self, default: SpecialTokens) -> SpecialTokens:
        return SpecialTokens(
            **{role: self.token(role) or getattr(default, role) for role in ROLE_NAMES}, pad_id=default.pad_id
        )

    @property
    def family(self) -> str:
        """The model_type of config.json, empty where there is none."""
        value = self.config.get("model_type")
        return value if isinstance(value, str) else ""

    def speaks_of(self, *families: str) -> bool:
        """Whether model_type is one of the families, or the class of the tokenizer is named after
        one.
        """
        kind = str(self.tokenizer_config.get("tokenizer_class", "")).lower()
        return self.family in families or kind.removesuffix("fast").removesuffix("tokenizer") in families

    @property
    def max_length(self) -> int | None:
        """What a sentence encoder says of itself, else what the tokenizer does."""
        for value in (self.sentence_config.get("max_seq_length"), self.tokenizer_config.get("model_max_length")):
            if isinstance(value, int) and not isinstance(value, bool) and 0 < value < MAX_SANE_LENGTH:
                return value
        return None

    @property
    def generic(self) -> bool:
        """Whether the class named is one that has no options of its own."""
        return self.tokenizer_config.get("tokenizer_class") in GENERIC_CLASSES

    @property
    def truncation_side(self) -> str | None:
        side = self.word("truncation_side")
        if side not in (None, "left", "right"):
            raise CheckpointError(
                f"{self.folder / 'tokenizer_config.json'}: truncation_side must be 'left' or 'right', got {side!r}"
            )
        return side

    def added(self) -> Iterator[tuple[tokenizers.AddedToken, int | None, str]]:
        """(token, its id, the file that names it): those with an id by id, then those without one."""
        config = "tokenizer_config.json"
        numbered: dict[int, tuple[tokenizers.AddedToken, int | None, str]] = {}
        extra = [(config, token) for token in self._extra(self.tokenizer_config, config)]
        if "added_tokens_decoder" in self.tokenizer_config:
            for index, token in self._object(self.tokenizer_config, "added_tokens_decoder", config).items():
                if not index.isdecimal() or len(index) > 9:
                    raise CheckpointError(f"{self.folder / config}: added_tokens_decoder has the id {index!r}")
                numbered[self._id(int(index), config)] = (self._token(token, config, False), int(index), config)
        else:
            name = "special_tokens_map.json"
            extra += [(name, token) for token in self._extra(self.special_map, name)]
            special = {self.token(role) for role in (*ROLE_NAMES, "bos", "eos")}
            special |= {token if isinstance(token, str) else self._content(token, name) for name, token in extra}
            for token, index in self.added_tokens.items():
                name = "added_tokens.json"
                kept = self._token(token, name, token in special)
                numbered[self._id(index, name)] = (kept, index, name)
        yield from (numbered[index] for index in sorted(numbered))
        yield from ((self._token(token, name, True), None, name) for name, token in extra)

    def _extra(self, source: Mapping[str, Any], name: str) -> list[Any]:
        """The tokens beside the roles, under their name of today or of before."""
        found = source.get("extra_special_tokens") or source.get("additional_special_tokens") or []
        if isinstance(found, Mapping):
            return list(found.values())
        if not isinstance(found, list):
            raise CheckpointError(f"{self.folder / name}: additional_special_tokens must be a list, got {found!r}")
        return found

    def _object(self, source: Mapping[str, Any], key: str, name: str) -> Mapping[str, Any]:
        found = source[key]
        if not isinstance(found, Mapping):
            raise CheckpointError(f"{self.folder / name}: {key} must be an object, got {found!r}")
        return found

    def _id(self, index: object, name: str) -> int:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < MAX_ENTRIES:
            raise CheckpointError(
                f"{self.folder / name} gives a token the id {index!r}; ids are whole numbers from 0 to "
                f"{MAX_ENTRIES - 1}"
            )
        return index

    def _content(self, token: object, name: str) -> str:
        content = token.get("content") if isinstance(token, Mapping) else token
        if not isinstance(content, str) or not content:
            raise CheckpointError(f"{self.folder / name}: an added token must be a string, got {token!r}")
        return encodable(content, self.folder / name)

    def _token(self, token: object, name: str, special: bool) -> tokenizers.AddedToken:
        content = self._content(token, name)
        flags = token if isinstance(token, Mapping) else {}
        special = bool(flags.get("special", special))
        switches = {side: bool(flags.get(side, False)) for side in ("lstrip", "rstrip", "single_word")}
        normalized = bool(flags.get("normalized", not special))
        return tokenizers.AddedToken(content, special=special, normalized=normalized, **switches)


def roles_among(known: Callable[[str], bool]) -> SpecialTokens:
    """The usual special tokens that a vocabulary knows."""
    found: dict[str, Any] = {role: next(filter(known, names), None) for role, names in ROLE_NAMES.items()}
    return SpecialTokens(**found)


# --- what they change


def add_tokens(tokenizer: Tokenizer, hints: Hints) -> None:
    """Let the tokens that the files add be recognised in a text, each under its id."""
    backend, step, last = tokenizer.backend, tokenizer.pre_step, tokenizer.vocab_size - 1
    tokens: dict[str, tokenizers.AddedToken] = {}
    ids: dict[str, int] = {}  # of those that the vocabulary lacks
    for token, index, name in hints.added():
        content, place = token.content, hints.folder / name
        known = backend.token_to_id(content)
        if known is not None and index not in (None, known):
            raise CheckpointError(f"{place} gives {content!r} the id {index}, the vocabulary gives it {known}")
        if isinstance(step, (DigitComma, LongestMatch)):  # their normalizer puts a blank in front of all it is given
            token = _as_written(token)
        tokens[content] = token
        if known is not None or content in ids:
            continue
        last += 1
        if index not in (None, last):
            raise CheckpointError(
                f"{place} gives {content!r} the id {index}; the vocabulary ends at {last - 1}, so that the next token "
                f"must have the id {last}"
            )
        if not isinstance(step, (NoPreStep, DigitComma, LongestMatch)) and step(content) != content:
            raise CheckpointError(
                f"{place} adds {content!r}, which the step {step.name!r} of this tokenizer would change to "
                f"{step(content)!r} before it is looked for"
            )
        ids[content] = last
    if not tokens:
        return
    backend.add_tokens(list(tokens.values()))
    wrong = next((content for content, index in ids.items() if backend.token_to_id(content) != index), None)
    if wrong is not None:
        raise CheckpointError(
            f"{hints.folder}: the added token {wrong!r} can't have the id {ids[wrong]}: the vocabulary has fewer "
            "tokens than ids (a token stands in it twice, or an id has none)"
        )
    del tokenizer.vocab_size
    if isinstance(step, LongestMatch):
        tokenizer.pre_step = LongestMatch(step.rules, {*step.keep, *tokens})
    found = hints.special(roles_among(lambda token: backend.token_to_id(token) is not None))
    for role in ("pad", "mask"):
        token = getattr(found, role)
        if getattr(tokenizer.special, role) is None and token in tokens:
            tokenizer.special = replace(tokenizer.special, **{role: token})


def _as_written(token: tokenizers.AddedToken) -> tokenizers.AddedToken:
    """The token, looked for in a text before the normalizer changes it."""
    sides = {side: getattr(token, side) for side in ("lstrip", "rstrip", "single_word")}
    return tokenizers.AddedToken(token.content, special=token.special, normalized=False, **sides)


def apply_options(backend: tokenizers.Tokenizer, hints: Hints) -> None:
    """Let tokenizer_config.json win over tokenizer.json in what it says of case, accents, Chinese
    characters and the blank in front, as the classes of transformers do; a generic class has no
    such options, and what the config leaves out stays as tokenizer.json has it.
    """
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars", "keep_accents", "add_prefix_space")
    if hints.generic or not any(name in hints.tokenizer_config for name in names):
        return
    said = {name: hints.flag(name) for name in names if name in hints.tokenizer_config}
    normalizer, pre_tokenizer = _state(backend.normalizer), _state(backend.pre_tokenizer)
    before = json.dumps([normalizer, pre_tokenizer])
    for part in _parts(normalizer, "normalizers"):
        if part["type"] == "BertNormalizer":
            part |= {"lowercase": said["do_lower_case"]} if said.get("do_lower_case") is not None else {}
            part |= {"strip_accents": said["strip_accents"]} if "strip_accents" in said else {}
            chinese = said.get("tokenize_chinese_chars")
            part |= {"handle_chinese_chars": chinese} if chinese is not None else {}
    if hints.speaks_of("albert", "rembert") and normalizer and normalizer["type"] == "Sequence":
        _clean_as_said(normalizer, said)
    space = said.get("add_prefix_space")
    for part in _parts(pre_tokenizer, "pretokenizers") if space is not None else ():
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = space
        elif part["type"] == "Metaspace" and hints.speaks_of(*METASPACE_FAMILIES):
            part["prepend_scheme"] = "always" if space else "never"
    if json.dumps([normalizer, pre_tokenizer]) == before:
        return
    # a backend without words, from which the two parts are taken
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    empty: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": model,
        "post_processor": None,
        "decoder": None,
    }
    written = json.dumps(empty | {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer})
    made = guarded(
        f"{hints.folder / 'tokenizer_config.json'}: its options don't fit tokenizer.json",
        CheckpointError,
        lambda: tokenizers.Tokenizer.from_str(written),
    )
    if normalizer is not None:
        backend.normalizer = made.normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = made.pre_tokenizer


def lower_texts(tokenizer: Tokenizer, hints: Hints) -> None:
    """Lower-case what the tokenizer reads where sentence_bert_config.json says ``do_lower_case``, as
    sentence-transformers does: in front of the normalizer, unless that does so already.
    """
    said = hints.sentence_config.get("do_lower_case")
    if said in (None, False):
        return
    place = hints.folder / "sentence_bert_config.json"
    if said is not True:
        raise CheckpointError(f"{place}: do_lower_case must be true, false or null, got {said!r}")
    if tokenizer.pre_step.name == "xlm":
        raise CheckpointError(
            f"{place} says do_lower_case, which comes too late behind the steps of XLM; let tokenizer_config.json say "
            "do_lowercase_and_remove_accent"
        )
    backend = tokenizer.backend
    parts = list(_parts(_state(backend.normalizer), "normalizers"))
    if any(part["type"] == "Lowercase" or part.get("lowercase") for part in parts):
        return
    before = [] if backend.normalizer is None else [backend.normalizer]
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *before])


def _state(part: Any) -> dict[str, Any] | None:
    if part is None:
        return None
    state: dict[str, Any] = parse_json(part.__getstate__().decode("utf-8"), "a part of tokenizer.json")
    return state


def _parts(state: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those inside sequences too."""
    if state is None:
        return
    if state["type"] == "Sequence":
        for part in state[inner]:
            yield from _parts(part, inner)
    else:
        yield state


def _clean_as_said(normalizer: dict[str, Any], said: Mapping[str, bool | None]) -> None:
    """ALBERT's steps with or without those that drop case and accents."""
    steps = normalizer["normalizers"]
    lower, keep = said.get("do_lower_case"), said.get("keep_accents")
    kinds = [step["type"] for step in steps]
    lower = "Lowercase" in kinds if lower is None else lower
    keep = "StripAccents" not in kinds if keep is None else keep
    rest = [step for step in steps if step["type"] not in ("NFKD", "StripAccents", "Lowercase")]
    place = next((i for i, step in enumerate(rest) if step["type"] == "Precompiled"), len(rest))
    accents = [] if keep else [{"type": "NFKD"}, {"type": "StripAccents"}]
    rest[place:place] = [*accents, *([{"type": "Lowercase"}] if lower else [])]
    normalizer["normalizers"] = rest
