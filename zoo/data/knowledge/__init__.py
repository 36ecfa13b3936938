"""Knowledge as typed inputs: triples, lexicons of entities, and where their mentions stand in a
text. Imports no torch.
"""

from zoo.data.knowledge.alignment import Mention, TokenSpan, first_pieces, marked, token_spans, whitespace_tokens
from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge.lexicon import Candidate, EntityLexicon, EntityTable, candidate_mentions
from zoo.data.knowledge.ngrams import NGram, NGramLexicon, extract_ngrams
from zoo.data.knowledge.readers import (
    Triple,
    named,
    read_aliases,
    read_entity_map,
    read_ntriples,
    read_openke_names,
    read_openke_triples,
    read_triples,
    read_tsv,
    read_vectors,
    read_wordnet,
)
from zoo.data.knowledge.wordnet import WordNetLexicon
from zoo.data.knowledge.words import Segmenter, jieba_segmenter, mark_words

__all__ = [
    "Candidate",
    "EntityLexicon",
    "EntityTable",
    "KnowledgeGraph",
    "Mention",
    "NGram",
    "NGramLexicon",
    "Segmenter",
    "TokenSpan",
    "Triple",
    "WordNetLexicon",
    "candidate_mentions",
    "extract_ngrams",
    "first_pieces",
    "jieba_segmenter",
    "mark_words",
    "marked",
    "named",
    "read_aliases",
    "read_entity_map",
    "read_ntriples",
    "read_openke_names",
    "read_openke_triples",
    "read_triples",
    "read_tsv",
    "read_vectors",
    "read_wordnet",
    "token_spans",
    "whitespace_tokens",
]
