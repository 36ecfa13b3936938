"""Which tokens may follow: rules on the scores of the next token.

A rule takes a `SoFar` and scores (rows, vocabulary) and gives scores; minus infinity forbids a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.inference.search.settings import Allowed, Processor, Search

NEVER = -torch.inf


@dataclass(frozen=True)
class SoFar:
    """What is written so far. ``ids`` (rows, length), ``sources`` (rows): the number of each row's source;
    ``source_ids`` (rows, source length) where there is one.
    """

    ids: Tensor
    sources: Tensor
    source_ids: Tensor | None = None


Rule = Callable[[SoFar, Tensor], Tensor]


def rules_of(search: Search, ends: tuple[int, ...], beginning: int, limit: int) -> list[Rule]:
    """The rules that the settings ask for, in transformers' order. ``beginning``: tokens that a text begins
    with; ``limit``: the longest text.
    """
    found: list[Rule] = []
    if search.repetition_penalty != 1:
        found.append(repeated_less(search.repetition_penalty))
    if search.no_repeat_ngram_size:
        found.append(no_repeat(search.no_repeat_ngram_size))
    if search.encoder_no_repeat_ngram_size:
        found.append(no_repeat(search.encoder_no_repeat_ngram_size, of_source=True))
    if search.bad_words_ids:
        found.append(without_sequences([words for words in search.bad_words_ids if words not in _alone(ends)]))
    if ends and (shortest := max(search.min_length, beginning + search.min_new_tokens if search.min_new_tokens else 0)):
        found.append(no_end_before(shortest, ends))
    if search.prefix_allowed_tokens is not None:
        found.append(only_allowed(search.prefix_allowed_tokens))
    if search.forced_bos_token_id is not None:
        found.append(forced_at(1, search.forced_bos_token_id))
    if search.forced_eos_token_id is not None:
        found.append(forced_at(limit - 1, search.forced_eos_token_id))
    if search.suppress_tokens:
        found.append(without(search.suppress_tokens))
    if search.begin_suppress_tokens:
        first = beginning if beginning > 1 or search.forced_bos_token_id is None else beginning + 1
        found.append(without(search.begin_suppress_tokens, at=first))
    if search.vocabulary is not None:
        found.append(only(search.vocabulary))
    found += [user_processor(each) for each in search.processors]
    if search.do_sample:
        found += drawing_rules(search, least=1 + max(len(ends), 1) if search.num_beams > 1 else 1)
    return found


def _alone(ends: tuple[int, ...]) -> set[tuple[int, ...]]:
    return {(end,) for end in ends}


def repeated_less(penalty: float) -> Rule:
    """Scores of tokens that were written: divided by ``penalty`` above 0, multiplied below (Keskar et al.,
    2019).
    """

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        found = scores.gather(1, step.ids)
        return scores.scatter(1, step.ids, torch.where(found < 0, found * penalty, found / penalty))

    return rule


def no_repeat(size: int, *, of_source: bool = False) -> Rule:
    """No token that would complete an n-gram of this size that was written, or stands in the source."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        text = step.source_ids if of_source else step.ids
        if text is None or text.shape[1] < size or step.ids.shape[1] < size - 1:
            return scores
        grams = text.unfold(1, size, 1)  # (rows, number, size)
        last = step.ids[:, step.ids.shape[1] - size + 1 :]  # (rows, size - 1)
        again = (grams[..., :-1] == last[:, None]).all(-1)  # (rows, number)
        forbidden = torch.zeros_like(scores).scatter_reduce(1, grams[..., -1], again.to(scores.dtype), "amax")
        return scores.masked_fill(forbidden > 0, NEVER)

    return rule


def without_sequences(sequences: Sequence[tuple[int, ...]]) -> Rule:
    """No token that would complete one of the sequences."""
    singles = [words[0] for words in sequences if len(words) == 1]
    longer = [words for words in sequences if len(words) > 1]

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        scores = without(singles)(step, scores) if singles else scores
        for *before, last in longer:
            if len(before) > step.ids.shape[1]:
                continue
            met = (step.ids[:, -len(before) :] == step.ids.new_tensor(before)).all(1)  # (rows,)
            column = scores[:, last : last + 1].masked_fill(met[:, None], NEVER)
            scores = torch.cat([scores[:, :last], column, scores[:, last + 1 :]], 1)
        return scores

    return rule


def no_end_before(length: int, ends: tuple[int, ...]) -> Rule:
    """No end before the text has so many tokens."""
    never = without(ends)
    return lambda step, scores: never(step, scores) if step.ids.shape[1] < length else scores


def only_allowed(allowed: Allowed) -> Rule:
    """Only what the user's function gives for each row."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        masked = torch.full_like(scores, NEVER)
        for row, (source, ids) in enumerate(zip(step.sources.tolist(), step.ids, strict=True)):
            some = torch.as_tensor(list(allowed(source, ids)), dtype=torch.long, device=scores.device)
            if len(some) and not 0 <= int(some.min()) <= int(some.max()) < scores.shape[1]:
                raise InputError(f"prefix_allowed_tokens gave {some.tolist()}; ids lie in 0..{scores.shape[1] - 1}")
            masked[row, some] = scores[row, some]
        return masked

    return rule


def forced_at(length: int, token: int) -> Rule:
    """Nothing but ``token`` behind so many tokens."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        if step.ids.shape[1] != length:
            return scores
        forced = torch.full_like(scores, NEVER)
        forced[:, token] = 0
        return forced

    return rule


def without(tokens: Sequence[int], at: int | None = None) -> Rule:
    """None of these tokens; ``at``: behind so many tokens alone."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        if at is not None and step.ids.shape[1] != at:
            return scores
        return scores.index_fill(1, torch.tensor(list(tokens), device=scores.device), NEVER)

    return rule


def only(tokens: Sequence[int]) -> Rule:
    """None but these tokens."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        some = torch.tensor(list(tokens), device=scores.device)
        return torch.full_like(scores, NEVER).index_copy(1, some, scores[:, some])

    return rule


def user_processor(processor: Processor) -> Rule:
    """A user's function of ids and scores."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        found = processor(step.ids, scores)
        if not isinstance(found, Tensor) or found.shape != scores.shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(
                f"a processor must give scores of shape {tuple(scores.shape)}, as it got them; it gave {got}"
            )
        return found

    return rule


def drawing_rules(search: Search, least: int) -> list[Rule]:
    """What shapes the distribution that tokens are drawn from; ``least``: tokens that stay in any case."""
    found: list[Rule] = []
    if search.temperature != 1:
        found.append(lambda step, scores: scores / search.temperature)
    if search.top_k is not None:
        found.append(likeliest(max(search.top_k, least)))
    if search.top_p is not None and search.top_p < 1:
        found.append(nucleus(search.top_p, least))
    return found


def likeliest(count: int) -> Rule:
    """The ``count`` likeliest alone (top-k)."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        worst = scores.topk(min(count, scores.shape[1]), 1).values[:, -1:]
        return scores.masked_fill(scores < worst, NEVER)

    return rule


def nucleus(probability: float, least: int) -> Rule:
    """The likeliest that together reach a probability (top-p; Holtzman et al., 2020)."""

    def rule(step: SoFar, scores: Tensor) -> Tensor:
        ordered, places = scores.sort(1, descending=False)
        left_out = ordered.softmax(1).cumsum(1) <= 1 - probability
        left_out[:, -least:] = False
        return scores.masked_fill(left_out.scatter(1, places, left_out), NEVER)

    return rule
