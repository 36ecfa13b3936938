"""Which tokens are written next: one likeliest or drawn token for each row, or beams.

A chooser holds the texts of the sources that are still open, ``each`` rows for every source, one
behind the other, and what they have come to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.errors import InputError
from zoo.inference.search.penalties import PENALTIES, Penalty
from zoo.inference.search.settings import Search

FAR = -1e9  # the score of a beam that does not count
DEAD = FAR / 2  # what a text can't come back from

Stops = Callable[[Tensor], Tensor]  # ids (rows, length) -> which rows hold a stop string, (rows,) bool


@dataclass(frozen=True)
class FoundText:
    """A text with its score and the log-probability of each of its tokens behind the beginning."""

    ids: Tensor  # (length,)
    score: float
    log_probs: Tensor  # (new,)


@dataclass(frozen=True)
class Limits:
    """When a text ends: ``longest`` tokens, one of the ``ends``, a stop string."""

    beginning: int
    longest: int
    ends: tuple[int, ...]
    stops: Stops | None = None

    def reached(self, ids: Tensor) -> Tensor:
        """Which texts have just ended."""
        if ids.shape[1] >= self.longest:
            return torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        ended = torch.isin(ids[:, -1], ids.new_tensor(self.ends)) if self.ends else ids.new_zeros(len(ids)).bool()
        return ended if self.stops is None else ended | self.stops(ids)


@dataclass(frozen=True)
class Move:
    """What the writer does next: rows go on from ``parents``, which may differ from them from column
    ``since`` on; of the sources those in ``open`` are kept (None: all). ``chosen``: the token of each row
    before any left.
    """

    chosen: Tensor  # (rows,)
    open: Tensor | None  # (kept,)
    parents: Tensor | None = None  # (rows,)
    since: int = 0


class Chooser:
    """Common to both: the rows that are open."""

    def __init__(self, beginning: Tensor, each: int, search: Search, limits: Limits) -> None:
        self.each, self.search, self.limits = each, search, limits
        self.ids = beginning.repeat_interleave(each, 0)  # (rows, length)
        self.sources = torch.arange(len(beginning), device=beginning.device)  # numbers of the open ones
        self.log_probs = torch.empty(len(self.ids), 0, device=beginning.device)  # of each token
        self.found: list[list[FoundText]] = [[] for _ in range(len(beginning))]

    @property
    def rows(self) -> Tensor:
        """The source of each row."""
        return self.sources.repeat_interleave(self.each)

    def choose(self, scores: Tensor, logits: Tensor) -> Move:
        raise NotImplementedError

    def forced_end(self, ids: Tensor) -> Tensor:
        """At the limit the end takes the last place where the settings say so."""
        if not (self.search.end_at_limit and self.limits.ends and ids.shape[1] >= self.limits.longest):
            return ids
        ended = torch.isin(ids[:, -1], ids.new_tensor(self.limits.ends))
        return torch.cat([ids[:, :-1], torch.where(ended, ids[:, -1], self.limits.ends[0])[:, None]], 1)


def of_tokens(logits: Tensor, tokens: Tensor) -> Tensor:
    """The model's log-probability of one token in each row."""
    return logits.gather(1, tokens[:, None]).squeeze(1) - logits.logsumexp(1)


class OneByOne(Chooser):
    """The likeliest token of each row, or one that is drawn; each row is a text of its own."""

    def __init__(
        self,
        beginning: Tensor,
        search: Search,
        limits: Limits,
        generator: torch.Generator | None = None,
        *,
        limited: bool = True,
    ) -> None:
        super().__init__(beginning, search.num_return_sequences, search, limits)
        self.generator, self.limited = generator, limited
        self.ended = torch.zeros(len(self.ids), dtype=torch.bool, device=beginning.device)
        self.texts: dict[tuple[int, int], FoundText] = {}

    def choose(self, scores: Tensor, logits: Tensor) -> Move:
        if self.search.do_sample:
            tokens = torch.multinomial(scores.softmax(1), 1, generator=self.generator).squeeze(1)
        else:
            tokens = scores.argmax(1)
        if self.limited and bool((scores.gather(1, tokens[:, None]) == -torch.inf).any()):
            raise InputError("no token may follow: the rules of this search forbid every one of the vocabulary")
        self.log_probs = torch.cat([self.log_probs.to(logits.dtype), of_tokens(logits, tokens)[:, None]], 1)
        self.ids = self.forced_end(torch.cat([self.ids, tokens[:, None]], 1))
        new = self.limits.reached(self.ids) & ~self.ended
        self.ended = self.ended | new
        for row in new.nonzero().flatten().tolist():
            source, place = int(self.sources[row // self.each]), row % self.each
            log_probs = self.log_probs[row]
            self.texts[source, place] = FoundText(self.ids[row], float(log_probs.sum()), log_probs)
        chosen, done = self.ids[:, -1], self.ended.unflatten(0, (-1, self.each)).all(1)
        still: Tensor | None = None
        if bool(done.any()):
            still = (~done).nonzero().flatten()
            for source in self.sources[done].tolist():
                self.found[source] = [self.texts[source, place] for place in range(self.each)]
            rows = ((still * self.each)[:, None] + torch.arange(self.each, device=still.device)).flatten()
            self.ids, self.log_probs, self.ended = self.ids[rows], self.log_probs[rows], self.ended[rows]
            self.sources = self.sources[still]
        return Move(chosen, still)


class Beams(Chooser):
    """The ``num_beams`` best texts of each source, by the sum of their log-probabilities."""

    def __init__(
        self,
        beginning: Tensor,
        search: Search,
        limits: Limits,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(beginning, search.num_beams, search, limits)
        self.generator = generator
        self.sums: Tensor | None = None  # (sources, beams)
        self.hopeful = [True] * len(beginning)  # whether an open text may still come among the best
        self.candidates = max(2, 1 + len(limits.ends)) * search.num_beams
        self.penalty: Penalty = PENALTIES[search.penalty] if isinstance(search.penalty, str) else search.penalty

    def choose(self, scores: Tensor, logits: Tensor) -> Move:
        beams, vocabulary = self.each, scores.shape[1]
        if self.sums is None:  # all beams of a source are alike: the first alone counts
            self.sums = torch.full((len(self.sources), beams), FAR, dtype=scores.dtype, device=scores.device)
            self.sums[:, 0] = 0
        sums, places = self.best(scores.unflatten(0, (-1, beams)) + self.sums[:, :, None])  # (sources, candidates)
        parents, tokens = places // vocabulary, places % vocabulary
        rows = (parents + torch.arange(len(parents), device=parents.device)[:, None] * beams).flatten()
        ids = torch.cat([self.ids[rows], tokens.flatten()[:, None]], 1)
        token_scores = logits[rows, tokens.flatten()] - logits.logsumexp(1)[rows]
        log_probs = torch.cat([self.log_probs.to(logits.dtype)[rows], token_scores[:, None]], 1)
        ended = self.limits.reached(ids).unflatten(0, sums.shape)  # (sources, candidates)
        self.collect(self.forced_end(ids), sums, log_probs, ended)
        running = sums + ended * FAR
        best = running.topk(beams, 1).indices  # (sources, beams)
        self.sums = running.gather(1, best)
        done = self.done(ended)
        still = None if not any(done) else torch.tensor([not each for each in done]).nonzero().flatten().to(ids.device)
        chosen = (best + torch.arange(len(best), device=best.device)[:, None] * self.candidates).flatten()
        before, self.ids, self.log_probs = self.ids, ids[chosen], log_probs[chosen]
        origin, tokens = rows[chosen], self.ids[:, -1]  # the row that each goes on from, and with what
        since = first_difference(before[origin], before)
        if still is not None:
            places = ((still * beams)[:, None] + torch.arange(beams, device=still.device)).flatten()
            self.ids, self.log_probs, self.sums = self.ids[places], self.log_probs[places], self.sums[still]
            self.sources = self.sources[still]
            self.hopeful = [each for each, over in zip(self.hopeful, done, strict=True) if not over]
        return Move(tokens, still, origin, since)

    def best(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """The best candidates of each source, or drawn ones, with their sums."""
        flat = total.flatten(1)
        if not self.search.do_sample:
            found = flat.topk(self.candidates, 1)
            return found.values, found.indices
        places = torch.multinomial(flat.softmax(1), self.candidates, generator=self.generator)
        return flat.gather(1, places), places

    def collect(
        self,
        ids: Tensor,
        sums: Tensor,
        log_probs: Tensor,
        ended: Tensor,
    ) -> None:
        """Add the texts that have just ended to the best of their sources."""
        beams = self.each
        if self.search.late_endings:  # fewer than num_beams open ones rank above it
            eligible = ended & ((~ended).cumsum(1) < beams)
        else:
            eligible = ended & (torch.arange(sums.shape[1], device=sums.device) < beams)
        scores = self.penalty(sums, ids.shape[1] - self.limits.beginning, self.search.length_penalty).tolist()
        for place, candidate in eligible.nonzero().tolist():
            kept = self.found[int(self.sources[place])]
            if not self.hopeful[place] or (self.search.early_stopping is True and self.full(place)):
                continue
            row = place * sums.shape[1] + candidate
            if float(sums[place, candidate]) <= DEAD:
                continue
            kept.append(FoundText(ids[row], scores[place][candidate], log_probs[row]))
        for source in self.sources.tolist():
            self.found[source] = sorted(self.found[source], key=lambda text: -text.score)[:beams]

    def full(self, place: int) -> bool:
        """Whether the source had all its texts before this token."""
        length = self.ids.shape[1] + 1
        return sum(len(text.ids) < length for text in self.found[int(self.sources[place])]) >= self.each

    def done(self, ended: Tensor) -> list[bool]:
        """Which sources are done: nothing is open, enough has ended, or nothing open can become better."""
        assert self.sums is not None
        length = self.ids.shape[1] + 1 - self.limits.beginning
        lengths = {length}
        if self.search.early_stopping == "never":
            lengths.add(self.limits.longest - self.limits.beginning)
        weight = self.search.length_penalty
        reachable = torch.stack([self.penalty(self.sums[:, 0], each, weight) for each in lengths]).amax(0).tolist()
        over, closed, alive = [], ended.all(1).tolist(), (self.sums[:, 0] > DEAD).tolist()
        for place, source in enumerate(self.sources.tolist()):
            full = len(self.found[source]) == self.each
            if full and not reachable[place] > self.found[source][-1].score:
                self.hopeful[place] = False
            enough = full and self.search.early_stopping is True
            over.append(closed[place] or enough or not self.hopeful[place] or not alive[place])
        return over


def first_difference(one: Tensor, other: Tensor) -> int:
    """The first column in which two batches of texts differ."""
    differ = (one != other).any(0)
    return int(differ.int().argmax()) if bool(differ.any()) else one.shape[1]


def chooser_of(
    beginning: Tensor,
    search: Search,
    limits: Limits,
    generator: torch.Generator | None,
    *,
    limited: bool,
) -> OneByOne | Beams:
    """Beams, or one token after the other; ``limited``: rules may forbid tokens."""
    if search.num_beams > 1:
        return Beams(beginning, search, limits, generator)
    return OneByOne(beginning, search, limits, generator, limited=limited)


def texts(chooser: Chooser, returned: int) -> list[FoundText]:
    """The best of each source, one source behind the other."""
    for source, found in enumerate(chooser.found):
        if len(found) < returned:
            raise InputError(
                f"source {source} has {len(found)} texts under the rules of this search, {returned} were asked for; "
                "lower num_return_sequences or allow more"
            )
    return [text for found in chooser.found for text in found[:returned]]
