"""WordPiece vocabularies (BERT and its kin) and the SMILES vocabularies of the chemistry models."""

from __future__ import annotations

import re
from collections.abc import Mapping

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from zoo.errors import CheckpointError, unknown
from zoo.tokenization.files import guarded
from zoo.tokenization.tokenizer import SpecialTokens, Tokenizer

BERT_SPECIAL = SpecialTokens(pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]", unk="[UNK]")

# One token of a SMILES string, longest alternatives first: a bracketed atom, a ring number, a two-letter element, the
# reaction arrow,
# then every single sign. rxnfp reads the three-digit ring number and the bar as tokens, rxnmapper passes over them.
SMILES_PATTERNS = {
    "rxnfp": r"\[[^\]]+\]|%\([0-9]{3}\)|%[0-9]{2}|Br|Cl|>>|[BCNOSPFIbcnosp()|.=#\-+\\/:~@?>*$0-9]",
    "rxnmapper": r"\[[^\]]+\]|%[0-9]{2}|Br|Cl|>>|[BCNOSPFIbcnosp().=#\-+\\/:~@?>*$0-9]",
}


def present(vocab: Mapping[str, int], special: SpecialTokens, what: str) -> SpecialTokens:
    """``special`` without the roles that this vocabulary lacks; the frame of a sequence and the
    unknown token it cannot lack.
    """
    for role in ("cls", "sep", "unk"):
        token = getattr(special, role)
        if token not in vocab:
            raise CheckpointError(
                f"{what} lacks the {role} token {token!r}; name the right one with special = {{ {role} = ... }}"
            )
    return SpecialTokens(
        pad=special.pad if special.pad in vocab else None,
        cls=special.cls,
        sep=special.sep,
        mask=special.mask if special.mask in vocab else None,
        unk=special.unk,
    )


def add_special(backend: tokenizers.Tokenizer, special: SpecialTokens, mask_takes_space: bool = False) -> None:
    """Let the special tokens be recognised inside a text, before anything else touches it."""
    for role in ("pad", "unk", "cls", "sep", "mask"):
        token = getattr(special, role)
        if token is not None:
            left = mask_takes_space and role == "mask"
            backend.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False, lstrip=left)])


def bert_frame(special: SpecialTokens, vocab: Mapping[str, int]) -> processors.TemplateProcessing:
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP] with segment 1 from b on."""
    cls, sep = str(special.cls), str(special.sep)
    return processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )


def roberta_frame(special: SpecialTokens, vocab: Mapping[str, int]) -> processors.TemplateProcessing:
    """<s> a </s>, or <s> a </s></s> b </s>, all of it segment 0."""
    cls, sep = str(special.cls), str(special.sep)
    return processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", f"{sep}:0", "$B:0", f"{sep}:0"],
        special_tokens=[(cls, vocab[cls]), (sep, vocab[sep])],
    )


def looks_cased(vocab: Mapping[str, int]) -> bool:
    """Whether more than one entry in a hundred has an upper-case letter, which lower-cased text
    would never reach.
    """
    words = [token for token in vocab if not (token.startswith("[") and token.endswith("]"))]
    return sum(token != token.lower() for token in words) * 100 > len(words)


def looks_like_smiles(vocab: Mapping[str, int]) -> bool:
    """Whether every entry but the bracketed ones is a single token of a SMILES string."""
    words = [
        token
        for token in vocab
        if token not in ("", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") and not token.startswith("[unused")
    ]
    pattern = re.compile(SMILES_PATTERNS["rxnfp"])
    return "C" in vocab and ">>" in vocab and all(pattern.fullmatch(token) for token in words)


def wordpiece(
    vocab: Mapping[str, int],
    *,
    lower_case: bool | None = None,
    strip_accents: bool | None = None,
    chinese: bool = True,
    special: SpecialTokens = BERT_SPECIAL,
    max_length: int | None = None,
    what: str = "the vocabulary",
) -> Tokenizer:
    """BERT's tokenizer: clean, split at blanks, punctuation and CJK characters, then the longest
    piece first.

    ``lower_case`` None: what the vocabulary's own letters say. ``strip_accents`` None: with
    ``lower_case``, as in BERT.
    """
    special = present(vocab, special, what)
    lower = not looks_cased(vocab) if lower_case is None else lower_case
    unk = str(special.unk)
    backend = tokenizers.Tokenizer(
        guarded(
            f"{what} is no WordPiece vocabulary", CheckpointError, lambda: models.WordPiece(dict(vocab), unk_token=unk)
        )
    )
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=chinese, strip_accents=strip_accents, lowercase=lower
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = bert_frame(special, vocab)
    add_special(backend, special)
    return Tokenizer(backend, special=special, max_length=max_length)


def smiles(
    vocab: Mapping[str, int],
    *,
    pattern: str = "rxnfp",
    special: SpecialTokens = BERT_SPECIAL,
    max_length: int | None = None,
    what: str = "the vocabulary",
) -> Tokenizer:
    """Tokens of a SMILES or reaction SMILES string, case kept; what is no such token is passed
    over, as the models' own code does.
    """
    if pattern not in SMILES_PATTERNS:
        raise unknown("SMILES pattern", pattern, SMILES_PATTERNS)
    special = present(vocab, special, what)
    unk = str(special.unk)
    backend = tokenizers.Tokenizer(
        guarded(f"{what} is no vocabulary", CheckpointError, lambda: models.WordLevel(dict(vocab), unk_token=unk))
    )
    backend.pre_tokenizer = pre_tokenizers.Split(
        tokenizers.Regex(SMILES_PATTERNS[pattern]), behavior="removed", invert=True
    )
    backend.decoder = decoders.Fuse()
    backend.post_processor = bert_frame(special, vocab)
    add_special(backend, special)
    return Tokenizer(backend, special=special, max_length=max_length)
