"""KnowBert (Peters et al., 2019): a BERT that, after some layer, links the text's mentions to
entities and rewrites its states by them.

Knowledge attention and recontextualization (KAR), after block n, with states H and candidate spans
of the text:
    P = W_p H + b_p                                                 words, in the entities' space of width E
    s = norm(Σ_t softmax_t(w · P_t) P_t) over a span's words,       then a block of BERT over the text's spans
    c = norm(entity vector),   score = w_2 relu(W_1 [s · c / √E; prior]) + b       for each of a span's candidates
    e = Σ softmax(score) c,   s' = norm(s + e)    with the margin loss: of scores above zero alone, else the null entity
    H' = norm(H + W_o block(P, keys and values s') + b_o)           words look at spans

Two sources: Wikipedia (after block 9, E = 300, margin loss) and WordNet (after block 10, E = 200,
softmax; an entity is a frozen vector and its part of speech, projected). Candidates come with the
text: `Candidates`, from `zoo.data.knowledge.lexicon.candidate_mentions`.

Traps: a span's last token is included. Norms of the KAR have eps 1e-5, those of its blocks 1e-12.
The null entity is the table's raw row. A text without mentions is changed too: it looks at one
empty span with the padding entity, as in the training of the released models. Entity tables are
frozen in the paper; here they are parameters like others: freeze them before training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.data.candidates import Candidates
from zoo.errors import ConfigError, InputError
from zoo.layers import (
    Attention,
    FeedForward,
    FirstTokenPooler,
    Mask,
    Run,
    Stack,
    Wanted,
    bert_block,
    post_norm,
    text_embeddings_of,
)
from zoo.layers.feed_forward import check_choice
from zoo.layers.heads import masked_lm_of
from zoo.layers.padding import carried
from zoo.models.base.config import check_heads, check_positive, free
from zoo.models.base.model import Reading
from zoo.models.base.outputs import Linked, Links
from zoo.models.base.text_encoder import TextEncoder
from zoo.models.bert import BertConfig
from zoo.registry.terms import ENTITY_LINKING, MASKED_LM, NEXT_SENTENCE
from zoo.registry.variants import TEXT_INPUTS

SOURCES = ("wiki", "wordnet")
MASKED = -10_000.0  # the score of what is no candidate


@dataclass(frozen=True)
class Knowledge:
    """One source's sizes, gathered from the flat config."""

    layer: int
    entities: int
    entity_size: int
    vector_size: int  # of the frozen vectors that are projected; 0 = the table holds entities as they are
    pos_size: int
    span_layers: int
    span_heads: int
    span_intermediate: int
    word_heads: int
    word_intermediate: int
    linking_hidden: int
    loss: str
    threshold: float
    margin: float


@dataclass(frozen=True, kw_only=True)
class KnowBertConfig(BertConfig):
    wiki_layer: int | None = None  # the block after which it is asked, counted from 0; None: not at all
    wiki_entities: int = 470_000  # entities of Wikipedia, rows of the table
    wiki_entity_size: int = 300  # width of an entity in the attention over candidates
    wiki_vector_size: int = 0  # of the frozen vectors that are projected; 0: none
    wiki_pos_size: int = 0  # of the part-of-speech vector beside them
    wiki_span_layers: int = 1  # blocks over the mentions
    wiki_span_heads: int = 4  # heads of those blocks
    wiki_span_intermediate: int = 1024  # inner width of their feed-forward
    wiki_word_heads: int = 4  # heads with which words look at entities
    wiki_word_intermediate: int = 1024  # inner width of that feed-forward
    wiki_linking_hidden: int = 100  # inner width of the scorer of candidates
    wiki_loss: str = "margin"  # of the linker: "margin" or "softmax"
    wiki_threshold: float = 0.0  # the margin loss's: below it a candidate counts for nothing
    wiki_margin: float = free(0.2)  # of the margin loss
    wordnet_layer: int | None = None  # as `wiki_layer`, for WordNet
    wordnet_entities: int = 117_700  # entities of WordNet, rows of the table
    wordnet_entity_size: int = 200  # width of an entity in the attention over candidates
    wordnet_vector_size: int = 2223  # of the frozen vectors that are projected; 0: none
    wordnet_pos_size: int = 25  # of the part-of-speech vector beside them
    wordnet_span_layers: int = 1  # blocks over the mentions
    wordnet_span_heads: int = 4  # heads of those blocks
    wordnet_span_intermediate: int = 1024  # inner width of their feed-forward
    wordnet_word_heads: int = 4  # heads with which words look at entities
    wordnet_word_intermediate: int = 1024  # inner width of that feed-forward
    wordnet_linking_hidden: int = 100  # inner width of the scorer of candidates
    wordnet_loss: str = "softmax"  # of the linker: "margin" or "softmax"
    wordnet_threshold: float = 0.0  # the margin loss's, as above
    wordnet_margin: float = free(0.2)  # of the margin loss
    null_entity_id: int = 3  # the entity that means: none of these

    def check(self) -> None:
        super().check()
        for name, source in self.knowledge.items():
            if not 0 <= source.layer < self.num_layers:
                raise ConfigError(f"{name}_layer={source.layer} must lie between 0 and {self.num_layers - 1}")
            check_heads(source.entity_size, source.span_heads, f"{name}_entity_size", f"{name}_span_heads")
            check_heads(source.entity_size, source.word_heads, f"{name}_entity_size", f"{name}_word_heads")
            check_choice("linking loss", source.loss, ("margin", "softmax"))
            check_positive(
                self,
                *(f"{name}_{field}" for field in ("entities", "span_layers", "span_intermediate", "word_intermediate")),
            )

    @property
    def knowledge(self) -> dict[str, Knowledge]:
        """The sources in the order in which they run: by layer, then by name."""
        there = [name for name in SOURCES if getattr(self, f"{name}_layer") is not None]
        found = {
            name: Knowledge(*(getattr(self, f"{name}_{field}") for field in Knowledge.__dataclass_fields__))
            for name in there
        }
        return dict(sorted(found.items(), key=lambda item: (item[1].layer, item[0])))


class ProjectedEntities(nn.Module):
    """WordNet's entities: ``W [vector; part of speech] + b``. The table of parts of speech has a
    row for each entity, as it is released.
    """

    part: Tensor

    def __init__(self, k: Knowledge, dropout: float) -> None:
        super().__init__()
        self.vectors = nn.Embedding(k.entities, k.vector_size)
        self.part_of_speech = nn.Embedding(k.entities, k.pos_size)
        self.register_buffer("part", torch.zeros(k.entities, dtype=torch.int64))  # which part of speech an entity is
        self.projection = nn.Linear(k.vector_size + k.pos_size, k.entity_size)
        self.dropout = nn.Dropout(dropout)

    @property
    def num_embeddings(self) -> int:
        return self.vectors.num_embeddings

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.part.zero_()

    def forward(self, ids: Int[Tensor, "*ids"]) -> Float[Tensor, "*ids entity_size"]:
        both = torch.cat(  # eq: wordnet
            [self.vectors(ids), self.part_of_speech(F.embedding(ids, self.part[:, None]).squeeze(-1))], -1
        )
        return self.dropout(self.projection(both))  # eq: wordnet


class EntityLinker(nn.Module):
    """Scores the candidates of each span and mixes them into one vector."""

    null: Tensor

    def __init__(self, c: KnowBertConfig, k: Knowledge) -> None:
        super().__init__()
        self.knowledge = k
        self.projection = nn.Linear(c.hidden_size, k.entity_size)
        self.span_scorer = nn.Linear(k.entity_size, 1)
        self.span_norm = nn.LayerNorm(k.entity_size, 1e-5)
        self.span_encoder = Stack(
            [_block(c, k.entity_size, k.span_heads, k.span_intermediate) for _ in range(k.span_layers)]
        )
        self.entities = ProjectedEntities(k, c.dropout) if k.vector_size else nn.Embedding(k.entities, k.entity_size)
        self.entity_norm = nn.LayerNorm(k.entity_size, 1e-5)
        self.score_up = nn.Linear(2, k.linking_hidden)
        self.score_down = nn.Linear(k.linking_hidden, 1)
        if k.loss == "margin":
            self.register_buffer("null", torch.zeros(k.entity_size))

    def init_parameters(self, std: float, generator: object = None) -> None:
        if self.knowledge.loss == "margin":
            self.null.zero_()

    def pool(
        self, words: Float[Tensor, "batch length entity_size"], spans: Int[Tensor, "batch spans 2"]
    ) -> Float[Tensor, "batch spans entity_size"]:
        """A span's last word is included; zeros for no span."""
        place = torch.arange(words.shape[1], device=words.device)
        inside = (
            (place >= spans[:, :, :1]) & (place <= spans[:, :, 1:]) & (spans[:, :, :1] >= 0)
        )  # (batch, spans, length)
        scores = self.span_scorer(words).transpose(1, 2).expand(-1, spans.shape[1], -1)  # eq: span
        weights = (  # eq: span
            scores.masked_fill(~inside, torch.finfo(scores.dtype).min).softmax(2).masked_fill(~inside, 0)
        )
        return weights @ words  # eq: span

    def forward(
        self,
        words: Float[Tensor, "batch length entity_size"],
        candidates: Candidates,
        seen: Bool[Tensor, "batch spans"],
    ) -> tuple[
        Float[Tensor, "batch spans entity_size"],
        Float[Tensor, "batch spans entity_size"],
        Float[Tensor, "batch spans candidates"],
    ]:
        """The spans' vectors, the entities', and the candidates' scores."""
        spans = Run(self.span_norm(self.pool(words, candidates.spans)), seen, name="candidates")  # eq: encode
        s = spans.through(self.span_encoder)  # (batch, spans, entity size)  # eq: encode
        c = self.entity_norm(self.entities(candidates.ids))  # (batch, spans, candidates, entity size)  # eq: score
        dots = torch.einsum("bse,bsce->bsc", s, c) / math.sqrt(c.shape[-1])  # eq: score
        scored = self.score_down(  # eq: score
            F.relu(self.score_up(torch.stack([dots, candidates.priors.to(dots.dtype)], -1)))
        ).squeeze(-1)
        scores = scored.masked_fill(candidates.ids == 0, MASKED)
        return s, self.mix(scores, c), scores

    def mix(
        self, scores: Float[Tensor, "batch spans candidates"], c: Float[Tensor, "batch spans candidates entity_size"]
    ) -> Float[Tensor, "batch spans entity_size"]:
        """The candidates' vectors weighted by their scores."""
        if self.knowledge.loss != "margin":  # eq: mix
            return torch.einsum("bsc,bsce->bse", scores.softmax(2), c)
        low = scores < self.knowledge.threshold  # eq: mix
        mixed = torch.einsum("bsc,bsce->bse", scores.masked_fill(low, MASKED).softmax(2), c)  # eq: mix
        return torch.where(low.all(2, keepdim=True), self.null, mixed)  # eq: mix


class Recontextualization(nn.Module):
    """One KAR: link, then let the words look at the linked spans."""

    def __init__(self, c: KnowBertConfig, k: Knowledge) -> None:
        super().__init__()
        self.linker = EntityLinker(c, k)
        self.span_norm = nn.LayerNorm(k.entity_size, 1e-5)
        self.attention = Attention(k.entity_size, k.word_heads, dropout=c.attention_dropout)
        self.attention_norm = nn.LayerNorm(k.entity_size, 1e-12)
        self.feed_forward = FeedForward(k.entity_size, k.word_intermediate, "gelu")
        self.feed_forward_norm = nn.LayerNorm(k.entity_size, 1e-12)
        self.output = nn.Linear(k.entity_size, c.hidden_size)
        self.output_norm = nn.LayerNorm(c.hidden_size, 1e-5)
        self.dropout = nn.Dropout(c.dropout)

    def forward(
        self, x: Float[Tensor, "*rows hidden"], candidates: Candidates, run: Run
    ) -> tuple[Float[Tensor, "*rows hidden"], Links]:
        """x: rows as ``run`` packs them -> the same, and what was linked."""
        words = carried(self.linker.projection(x), run.padding, None)  # (batch, length, entity size)  # eq: project
        there = candidates.spans[:, :, 0] >= 0
        first = torch.arange(there.shape[1], device=x.device) == 0
        seen = there | (first & ~there.any(1, keepdim=True))  # a text without mentions looks at one empty span
        s, e, scores = self.linker(words, candidates, seen)
        known = self.span_norm(s + self.dropout(e))  # eq: known
        links = run.beside(words)  # its maps are the words' looks at the spans
        y = post_norm(  # eq: look
            words,
            lambda q: self.attention(q, known, known, Mask(keys=seen), None, links.trace),
            self.attention_norm,
            self.dropout,
        )
        y = post_norm(  # eq: look
            carried(y, None, run.padding), self.feed_forward, self.feed_forward_norm, self.dropout
        )
        maps = None if links.attentions is None else links.attentions[0]
        return self.output_norm(x + self.dropout(self.output(y))), Links(  # eq: back
            scores, e.masked_fill(~there.unsqueeze(2), 0), maps
        )


def _block(
    c: KnowBertConfig, size: int, heads: int, intermediate: int, activation: str = "gelu", eps: float = 1e-12
) -> nn.Module:
    return bert_block(
        size,
        heads,
        intermediate,
        activation=activation,
        norm_eps=eps,
        dropout=c.dropout,
        attention_dropout=c.attention_dropout,
    )


class KnowBert(TextEncoder):
    Config = KnowBertConfig
    heads = {
        "masked_lm": masked_lm_of,
        "next_sentence": lambda c: nn.Linear(c.hidden_size, 2),
    }
    offers = {**TextEncoder.offers, "entities": Reading(lambda e: e.links), "mentions": Reading(lambda e: e.links)}
    pretraining = (MASKED_LM, NEXT_SENTENCE, ENTITY_LINKING)  # eq: loss
    inputs = (*TEXT_INPUTS, "entity_candidates")
    exceptions = {"gradients": "a text in which nothing is mentioned teaches no linker to choose"}

    def __init__(self, config: KnowBertConfig) -> None:
        super().__init__(config)
        c = config
        self.embeddings = text_embeddings_of(c)
        blocks = [
            _block(c, c.hidden_size, c.num_heads, c.intermediate_size, c.activation, c.norm_eps)
            for _ in range(c.num_layers)
        ]
        self.encoder = Stack(blocks)
        self.knowledge = nn.ModuleDict({name: Recontextualization(c, k) for name, k in c.knowledge.items()})
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    def forward(  # type: ignore[override]
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Int[Tensor, "batch length"] | None = None,
        position_ids: Int[Tensor, "*#batch length"] | None = None,
        inputs_embeds: Float[Tensor, "batch length embedding"] | None = None,
        entity_candidates: Mapping[str, Candidates] | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: Wanted = False,
        output_attentions: Wanted = False,
    ) -> Linked:
        """As `TextEncoder`, and ``entity_candidates``: for each source ("wiki", "wordnet") the
        spans that may be mentions and what they may mean. Left out: nothing is mentioned. A hidden
        state is what leaves a block and the knowledge behind it.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)  # (batch, length, hidden)
        run = Run(x, attention_mask, lengths, output_hidden_states, output_attentions)
        candidates = self.candidates(entity_candidates or {}, run.padding.grid, x.device)
        x, links = run.enter(), {}
        for index in self.encoder.plan:  # eq: layers
            x = self.encoder.blocks[index](x, run.mask, None, run.trace)
            for name, source in self.config.knowledge.items():
                if source.layer == index:
                    x, links[name] = self.knowledge[name](x, candidates[name], run)
            run.trace.hidden(x)
        return Linked(**vars(run.encoded(run.leave(x), self.pooler)), links=links)

    def candidates(
        self, given: Mapping[str, Candidates], grid: tuple[int, int], device: torch.device
    ) -> dict[str, Candidates]:
        """Each source's candidates, checked; one empty span for each text where a source has
        none.
        """
        sources = self.config.knowledge
        if strange := sorted(set(given) - set(sources)):
            raise InputError(
                f"entity_candidates are for {strange[0]!r}; this model knows {', '.join(sources) or 'no source'}"
            )
        for name, candidates in given.items():
            candidates.check(grid, sources[name].entities)
        none = torch.full((grid[0], 1, 2), -1, device=device)
        empty = Candidates(none, torch.zeros_like(none[:, :, :1]), torch.zeros_like(none[:, :, :1]))
        return {name: given.get(name, empty) for name in sources}
