"""`generate` writes texts with a model, `score` says how likely it finds a given one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zoo.errors import InputError, unknown
from zoo.inference.search.choosing import FoundText, Stops
from zoo.inference.search.kinds import writer_of
from zoo.inference.search.loop import Outside, Streamer, write
from zoo.inference.search.settings import FIELDS, Search
from zoo.inference.search.writers import check_source
from zoo.layers.outputs import Output
from zoo.layers.padding import as_bool


@dataclass(frozen=True)
class Generated(Output):
    """What `generate` wrote, ``num_return_sequences`` texts for each source, one source behind the other.

    ``sequences`` (texts, length): ids with the beginning and the end, then padding. ``scores`` (texts):
    what a text was chosen by: with beams its sum of log-probabilities after the length penalty, else the
    sum. ``log_probs`` (texts, new tokens): the model's, of each token behind the beginning, zeros behind
    the end; ``lengths``: tokens of each text, beginning and end included.
    """

    sequences: Tensor
    scores: Tensor
    log_probs: Tensor
    lengths: tuple[int, ...]

    def texts(self, tokenizer: Any) -> list[str]:
        """What was written, as the tokenizer decodes it."""
        pairs = zip(self.sequences, self.lengths, strict=True)
        return [tokenizer.decode(ids[:length].tolist()) for ids, length in pairs]


@torch.no_grad()
def generate(
    model: Any,
    input_ids: Tensor | Mapping[str, Any] | None = None,
    attention_mask: Tensor | None = None,
    *,
    search: Search | None = None,
    start_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
    streamer: Streamer | None = None,
    progress: Callable[[int, int], None] | None = None,
    **named: Any,
) -> Generated:
    """Write a text for each source of a batch.

    model: with a task that writes (conditional-generation, causal-lm), in eval mode. input_ids,
    attention_mask (batch, length): the sources, or a mapping with all inputs, as a tokenizer gives it.
    search: the settings; those of ``named`` that are settings change it (``num_beams=5``), the others go
    to the model: to the decoder where their names begin with ``decoder_`` (``decoder_language_ids="fr"``).
    start_ids (batch, n): a beginning to go on from, in place of the config's ``start_token_id``.
    generator: of the random numbers of ``do_sample``. streamer: called with a source's number and each of
    its tokens. progress: called with the length that is reached, and the longest.
    """
    if isinstance(input_ids, Mapping):
        given = dict(input_ids)
        input_ids, attention_mask = given.pop("input_ids", None), given.pop("attention_mask", attention_mask)
        named = {**given, **named}
    kind = writer_of(model)
    if model.training:
        raise InputError("the model is in training mode, so dropout would choose the words; call model.eval() first")
    inputs, changes = _apart(model, named)
    if input_ids is None and "visual_features" not in inputs:
        raise InputError("input_ids are missing: the sources, (batch, length)")
    _check_call(search, start_ids, streamer, progress, changes, model.config.vocab_size)
    search = (search or getattr(model, "search", None) or Search()).replace(**changes)
    if generator is not None and not search.do_sample:
        raise InputError("a generator has no effect unless tokens are drawn; add do_sample=True")
    if streamer is not None and (search.num_beams > 1 or search.num_return_sequences > 1):
        raise InputError(
            f"a streamer is told each token as it is chosen, which num_beams={search.num_beams} and "
            f"num_return_sequences={search.num_return_sequences} change afterwards; set both to 1"
        )
    writer = kind(model, input_ids, attention_mask, start_ids, inputs, use_cache=search.use_cache)
    ends = search.ends(model.config)
    longest = _longest(search, writer.beginning.shape[1], writer.longest)
    _check_ids(search, ends, model.config)
    stops = _stops(model, search.stop, writer.beginning.shape[1]) if search.stop else None
    found = write(writer, search, ends, longest, Outside(generator, streamer, progress, stops))
    return _joined(found, writer.beginning.shape[1], model.config.pad_token_id or 0)


def _check_call(
    search: object, start_ids: object, streamer: object, progress: object, changes: Mapping[str, Any], vocab_size: int
) -> None:
    """Refuse arguments of another kind than `generate` takes."""
    if search is not None and not isinstance(search, Search):
        raise InputError(f"search must be a zoo.Search, got {search!r}; its settings can be given by name too")
    if start_ids is not None and (not isinstance(start_ids, Tensor) or start_ids.dim() != 2):
        raise InputError(f"start_ids must be a tensor (batch, n) of ids, got {start_ids!r}")
    for name, function in (("streamer", streamer), ("progress", progress)):
        if function is not None and not callable(function):
            raise InputError(f"{name} must be a function, got {function!r}")
    for name, value in changes.items():
        if isinstance(value, Tensor) and value.dtype == torch.bool and value.shape != (vocab_size,):
            raise InputError(
                f"{name} as a mask must have a value for each of the {vocab_size} ids, got {tuple(value.shape)}"
            )


def _apart(model: Any, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs of the model, and settings."""
    settings = {name: value for name, value in named.items() if name in FIELDS}
    inputs = {name: value for name, value in named.items() if name not in FIELDS}
    known = {*model.model.inputs, "lengths"}
    for name in inputs:
        if name not in known:
            raise unknown("setting of a search, or input of the model,", name, sorted({*FIELDS, *known}))
    return inputs, settings


def _longest(search: Search, beginning: int, most: int) -> int:
    """Tokens of the longest text."""
    if search.max_new_tokens is not None:
        wanted, name = beginning + search.max_new_tokens, f"max_new_tokens={search.max_new_tokens}"
    else:
        wanted = most if search.max_length is None else search.max_length
        name = f"max_length={search.max_length}"
    if not beginning < wanted <= most:
        raise InputError(
            f"{name} must leave a text between {beginning + 1} tokens, one more than its beginning has, and {most}, "
            f"the positions of the model; it makes {wanted}"
        )
    if search.min_length > wanted:
        raise InputError(f"min_length={search.min_length} is more than the {wanted} tokens that {name} leaves")
    return wanted


def _check_ids(search: Search, ends: tuple[int, ...], config: Any) -> None:
    """Refuse ids that the vocabulary lacks, and lengths that nothing could end."""
    named = {
        "bad_words_ids": [token for words in search.bad_words_ids for token in words],
        "suppress_tokens": search.suppress_tokens,
        "begin_suppress_tokens": search.begin_suppress_tokens,
        "vocabulary": search.vocabulary or (),
        "forced_bos_token_id": () if search.forced_bos_token_id is None else (search.forced_bos_token_id,),
        "forced_eos_token_id": () if search.forced_eos_token_id is None else (search.forced_eos_token_id,),
        "end_token_id": ends,
    }
    for name, tokens in named.items():
        for token in tokens:
            if not 0 <= token < config.vocab_size:
                raise InputError(f"{name} holds {token}; ids lie in 0..{config.vocab_size - 1}")
    for name in ("min_length", "min_new_tokens"):
        if getattr(search, name) and not ends:
            raise InputError(f"{name}={getattr(search, name)} has no effect: nothing ends a text; say end_token_id")


def _stops(model: Any, strings: Sequence[str], beginning: int) -> Stops:
    """Which texts hold a stop string behind their beginning."""
    tokenizer = model.need_tokenizer()

    def stops(ids: Tensor) -> Tensor:
        written = [tokenizer.backend.decode(row, skip_special_tokens=True) for row in ids[:, beginning:].tolist()]
        return torch.tensor([any(string in text for string in strings) for text in written], device=ids.device)

    return stops


def _joined(found: Sequence[FoundText], beginning: int, padding: int) -> Generated:
    """Texts of several lengths as one batch."""
    lengths = tuple(len(text.ids) for text in found)
    ids, longest = found[0].ids, max(lengths)
    sequences = ids.new_full((len(found), longest), padding)
    log_probs = found[0].log_probs.new_zeros(len(found), longest - beginning)
    for row, text in enumerate(found):
        sequences[row, : lengths[row]] = text.ids
        log_probs[row, : len(text.log_probs)] = text.log_probs
    scores = torch.tensor([text.score for text in found], dtype=log_probs.dtype, device=ids.device)
    return Generated(sequences, scores, log_probs, lengths)


@dataclass(frozen=True)
class Scored(Output):
    """How likely a model finds texts. ``log_probs`` (texts, length - 1): of each token but the first, given
    those before it; zeros at padding. ``scores`` (texts): their sums.
    """

    log_probs: Tensor
    scores: Tensor


@torch.no_grad()
def score(
    model: Any,
    input_ids: Tensor | Mapping[str, Any] | None,
    target_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    target_mask: Tensor | None = None,
    **named: Any,
) -> Scored:
    """The log-probability of each target, given its source.

    target_ids (batch, length): as `generate` writes them, with their beginning and end; target_mask: 1/True
    = a real token, by default all that is no padding id behind the first token. A causal model has no source:
    hand the texts as ``target_ids`` and None as ``input_ids``. Other inputs as for `generate`.
    """
    writer_of(model)
    if model.training:
        raise InputError("the model is in training mode, so its dropout would change the scores; call model.eval()")
    log_probs = log_probs_of(model, input_ids, target_ids, attention_mask, target_mask=target_mask, **named)
    return Scored(log_probs, log_probs.sum(1))


def log_probs_of(
    model: Any,
    input_ids: Tensor | Mapping[str, Any] | None,
    target_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    *,
    target_mask: Tensor | None = None,
    **named: Any,
) -> Tensor:
    """The ``log_probs`` of `score`, in the model's mode and with gradients where they are wanted."""
    kind = writer_of(model)
    if isinstance(input_ids, Mapping):
        given = dict(input_ids)
        input_ids, attention_mask = given.pop("input_ids", None), given.pop("attention_mask", attention_mask)
        named = {**given, **named}
    if not isinstance(target_ids, Tensor) or target_ids.dim() != 2 or target_ids.shape[1] < 2:
        got = tuple(target_ids.shape) if isinstance(target_ids, Tensor) else repr(target_ids)
        raise InputError(f"target_ids must be a tensor (batch, length) with two tokens at least, got {got}")
    inputs, settings = _apart(model, named)
    if settings:
        raise InputError(f"{sorted(settings)[0]} is a setting of a search, which scoring does not make")
    if target_mask is None:
        padding = getattr(model.config, "pad_token_id", None)
        real = torch.ones_like(target_ids, dtype=torch.bool) if padding is None else target_ids != padding
        real[:, 0] = True  # a text may begin with the padding id
    else:
        real = as_bool(target_mask, "target_mask")
    if real.shape != target_ids.shape:
        raise InputError(f"target_mask must be {tuple(target_ids.shape)}, got {tuple(real.shape)}")
    assert not isinstance(input_ids, Mapping)
    if input_ids is not None:
        check_source(input_ids, attention_mask)
        if len(input_ids) != len(target_ids):
            raise InputError(f"there are {len(input_ids)} sources and {len(target_ids)} targets; give one for each")
    states = kind.states(model, input_ids, attention_mask, target_ids[:, :-1], real[:, :-1], inputs)
    logits = model.predict(states)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    found = logits.gather(2, target_ids[:, 1:, None]).squeeze(2) - logits.logsumexp(2)
    return found.masked_fill(~real[:, 1:], 0)
