"""Scene graphs of captions, and the masking that teaches them (ERNIE-ViL): all tokens of a chosen object, attribute
or relation are hidden, so that they must be read off the picture and the rest of the graph.

    graph = scene_graph(tokens, ["cat", "table"], [("cat", "black")], [("cat", "on", "table")], tokenize)
    masked, labels = scene_graph_masking(ids, graph, mask_id, random_ids, rng)

The graph comes from the caller: from a parser, or by hand. The model predicts the words with its head for masked
words, `labels` as of any masked language model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from zoo.data.masking import BERT_SHARES, IGNORED, Shares
from zoo.errors import InputError

Span = tuple[int, int]  # places of tokens, first and behind the last


@dataclass(frozen=True)
class SceneGraph:
    """What a caption says, as spans of its tokens: ``objects``; ``attributes`` as (object, attribute); ``relations``
    as (subject, relation, object).
    """

    objects: tuple[Span, ...] = ()
    attributes: tuple[tuple[Span, Span], ...] = ()
    relations: tuple[tuple[Span, Span, Span], ...] = ()

    @property
    def nodes(self) -> tuple[Span, ...]:
        """What may be masked, each once: objects, the attributes of pairs, the relations of triples."""
        found = (*self.objects, *(pair[1] for pair in self.attributes), *(triple[1] for triple in self.relations))
        return tuple(dict.fromkeys(found))


def scene_graph(
    tokens: Sequence[str],
    objects: Iterable[str],
    attributes: Iterable[tuple[str, str]],
    relations: Iterable[tuple[str, str, str]],
    tokenize: Callable[[str], Sequence[str]],
) -> SceneGraph:
    """The graph of a caption from its words: each is looked up among the tokens, where it stands first.

    tokenize: the tokens of a word or of several, such as ``lambda text: tokenizer.encode(text).tokens[1:-1]``.
    An object of attributes and relations need not be listed among the objects. Raises InputError for a word that
    the caption does not have.
    """
    pairs, triples = [tuple(pair) for pair in attributes], [tuple(triple) for triple in relations]
    for kind, size, found in (("attributes", 2, pairs), ("relations", 3, triples)):
        for one in found:
            if len(one) != size:
                raise InputError(f"{kind} have {size} parts, got {one!r}")

    def place(words: str) -> Span:
        pieces = list(tokenize(words))
        if not pieces:
            raise InputError(f"{words!r} has no tokens")
        for start in range(len(tokens) - len(pieces) + 1):
            if list(tokens[start : start + len(pieces)]) == pieces:
                return start, start + len(pieces)
        raise InputError(f"the caption does not have {words!r}; its tokens are {' '.join(tokens)}")

    spans = [place(words) for words in objects]
    placed = [tuple(place(words) for words in one) for one in (*pairs, *triples)]
    spans += [one[at] for one in placed for at in (0, len(one) - 1) if len(one) == 3 or at == 0]
    return SceneGraph(
        tuple(dict.fromkeys(spans)),
        tuple((one[0], one[1]) for one in placed if len(one) == 2),
        tuple((one[0], one[1], one[2]) for one in placed if len(one) == 3),
    )


def scene_graph_masking(
    ids: Sequence[int],
    graph: SceneGraph,
    mask_id: int,
    random_ids: Sequence[int],
    rng: random.Random,
    *,
    rate: float = 0.3,
    shares: Shares = BERT_SHARES,
) -> tuple[list[int], list[int]]:
    """Ids with chosen nodes hidden, and labels that are -100 everywhere else.

    Of the nodes ``rate``, rounded, and at least one, are chosen. One draw decides for a whole node: ``shares`` become
    the mask, stay, and become random ids out of ``random_ids``.
    """
    if not 0 < rate <= 1:
        raise InputError(f"rate={rate} must lie above 0, and at 1 at most")
    nodes = graph.nodes
    if wrong := [span for span in nodes if not 0 <= span[0] < span[1] <= len(ids)]:
        raise InputError(f"the graph has the span {wrong[0]}, and the text {len(ids)} tokens")
    masked, labels = list(ids), [IGNORED] * len(ids)
    if not nodes:
        return masked, labels
    for node in sorted(rng.sample(range(len(nodes)), max(1, round(rate * len(nodes))))):
        start, stop = nodes[node]
        fate = rng.random()
        for place in range(start, stop):
            labels[place] = ids[place]
            if fate < shares[0]:
                masked[place] = mask_id
            elif fate >= shares[0] + shares[1]:
                masked[place] = rng.choice(random_ids)
    return masked, labels
