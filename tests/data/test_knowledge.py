"""Triples, lexicons, alignments, sentence trees, n-grams: what is read, found and refused. Oracles
share no code with what they check.
"""

from __future__ import annotations

import itertools
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.data.candidates import KNOWBERT_SPECIAL, CandidateCollator, Candidates
from zoo.data.knowledge.alignment import Mention, first_pieces, marked, token_spans
from zoo.data.knowledge.graph import KnowledgeGraph
from zoo.data.knowledge.lexicon import Candidate, EntityLexicon, EntityTable, candidate_mentions
from zoo.data.knowledge.ngrams import NGramLexicon, extract_ngrams
from zoo.data.knowledge.readers import (
    named,
    read_aliases,
    read_entity_map,
    read_ntriples,
    read_openke_names,
    read_openke_triples,
    read_tsv,
    read_vectors,
    read_wordnet,
)
from zoo.data.knowledge.wordnet import WordNetLexicon
from zoo.data.knowledge.words import jieba_segmenter, mark_words
from zoo.data.knowledge_batches import (
    EntityDenoising,
    NGramCollator,
    SentenceTreeCollator,
    longest_subjects,
    sentence_tree,
    thinned,
)
from zoo.data.knowledge_masking import SpanBertMasking, knowledge_masking, unit_labels, unit_masking
from zoo.data.masking import RandomSpanDraws
from zoo.errors import CheckpointError, ConfigError, InputError, MissingExtraError, UnknownNameError
from zoo.models.transe import MarginLoss, TransE, TransEConfig, corrupted, link_scores, ranks, split_scores

WORDS = st.text("abé京", min_size=1, max_size=3)
TRIPLES = st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=30)
SETTINGS = {"deadline": None, "derandomize": True}


def test_knowledge_without_training_imports_no_torch():
    code = "import sys, zoo.data.knowledge; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
        == "False"
    )


# -- graphs ------------------------------------------------------------------------------------------------------------


@given(triples=TRIPLES, limit=st.one_of(st.none(), st.integers(0, 3)), predicate=st.booleans())
@settings(max_examples=60, **SETTINGS)
def test_a_graph_keeps_the_order_of_its_file_and_each_fact_once(tmp_path_factory, triples, limit, predicate):
    built = KnowledgeGraph.from_triples(triples)
    opened = KnowledgeGraph.open(built.save(tmp_path_factory.mktemp("graph") / "arrays"))
    facts: dict[str, list[tuple[str, str]]] = {}
    for subject, relation, value in triples:
        told = facts.setdefault(subject, [])
        if (relation, value) not in told:
            told.append((relation, value))
    for graph in (built, opened):
        assert len(graph) == sum(map(len, facts.values()))
        assert set(graph.subjects()) == set(facts)
        for subject in {part for triple in triples for part in triple} | {"nobody"}:
            assert graph.facts(subject) == facts.get(subject, [])
            assert (subject in graph) == (subject in facts)
            values = list(dict.fromkeys(r + v if predicate else v for r, v in facts.get(subject, [])))
            assert graph.values(subject, predicate=predicate, limit=limit) == values[:limit]
        assert sorted(graph.triples()) == sorted(set(triples))


def test_a_graph_is_built_once_and_opened_until_its_file_changes(tmp_path):
    source, cache = tmp_path / "facts.spo", tmp_path / "facts.graph"
    source.write_text("a\tis\tb\n\na\tis\tc\n", encoding="utf-8")
    assert KnowledgeGraph.read(source, cache).values("a") == ["isb", "isc"]
    built = (cache / "graph.json").stat().st_mtime_ns
    assert KnowledgeGraph.read(source, cache).values("a") == ["isb", "isc"]
    assert (cache / "graph.json").stat().st_mtime_ns == built
    source.write_text("a\tis\td\n", encoding="utf-8")
    assert KnowledgeGraph.read(source, cache).values("a") == ["isd"]
    assert [p.name for p in tmp_path.iterdir()] in (["facts.spo", "facts.graph"], ["facts.graph", "facts.spo"])


@pytest.mark.parametrize("broken", ["graph.json", "offsets.npy", "objects.npy"])
def test_a_graph_that_is_cut_short_is_refused(tmp_path, broken):
    folder = KnowledgeGraph.from_triples([("a", "b", "c")]).save(tmp_path / "g")
    whole = (folder / broken).read_bytes()
    (folder / broken).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=broken.split(".")[0]):
        KnowledgeGraph.open(folder)


def test_an_opened_graph_is_mapped_and_a_look_up_reads_no_more_than_it_needs(tmp_path):
    folder = KnowledgeGraph.from_triples((f"subject {i}", "is", f"object {i}") for i in range(20_000)).save(
        tmp_path / "g"
    )
    graph = KnowledgeGraph.open(folder)
    assert all(isinstance(array.base, np.memmap) for array in graph._arrays.values())
    looked: list[object] = []

    class Watched(np.ndarray):
        def __getitem__(self, where):
            looked.append(where)
            return super().__getitem__(where)

    for name in ("_starts", "_predicates", "_objects", "_order"):
        setattr(graph, name, getattr(graph, name).view(Watched))
    assert graph.facts("subject 777") == [("is", "object 777")]
    assert len(looked) <= 6
    assert all(isinstance(where, int | np.integer) for where in looked)


@pytest.mark.parametrize(
    ("read", "text", "says"),
    [
        (read_tsv, "a\tb\tc\na b c\n", "line 2: a triple is subject TAB predicate TAB object"),
        (read_tsv, "a\t\tc\n", "line 1"),
        (read_ntriples, "<a> <b> <c> .\n<a> <b> c .\n", "line 2: not a triple"),
        (read_ntriples, '"a" <b> <c> .\n', "line 1"),
        (read_ntriples, '<a> <b> "\\q" .\n', "no escape"),
        (read_openke_names, "2\na\t0\na\t1\n", "repeats"),
        (read_openke_names, "3\na\t0\n", "promises 3 names and holds 1"),
        (read_openke_triples, "1\n0 1\n", "line 2"),
        (read_vectors, "1\t2\n1\n", "line 2 has 1 numbers, the first line 2"),
        (read_entity_map, "Paris\tQ90\n\nParis\tQ830149\n", "line 3: the subject 'Paris' stands in line 1 already"),
        (read_entity_map, "Paris\tQ90\tQ830149\n", "line 1: a line is title TAB id"),
        (read_aliases, "Q90\tParis\nQ90\tPanam\n", "line 2: the subject 'Q90' stands in line 1 already"),
        (read_aliases, "Q90\n", "line 1: a line is id TAB alias"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, read, text, says):
    file = tmp_path / "file.txt"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        list(read(file))


def test_n_triples_give_their_texts(tmp_path):
    file = tmp_path / "file.nt"
    file.write_text(
        '# note\n<http://x/é> <p> "caf\\u00E9 \\"x\\""@fr . # end\n_:b <p> "1"^^<http://int> .\n', encoding="utf-8"
    )
    assert list(read_ntriples(file)) == [("http://x/é", "p", 'café "x"'), ("_:b", "p", "1")]


def test_a_graph_of_ids_is_spelled_with_their_names(tmp_path):
    facts, names = tmp_path / "facts.txt", tmp_path / "aliases.txt"
    facts.write_text("Q90\tP1376\tQ142\nQ90\tP47\tQ3\n", encoding="utf-8")
    names.write_text("Q90\tParis\tCity of Light\nQ142\tFrance\nP1376\tcapital of\nP47\tborders\n", encoding="utf-8")
    aliases = read_aliases(names)
    assert aliases["Q90"] == ["Paris", "City of Light"]
    assert KnowledgeGraph.from_triples(named(read_tsv(facts), aliases, skip=True)).facts("Paris") == [
        ("capital of", "France")
    ]
    with pytest.raises(UnknownNameError, match=r"unknown id 'Q3'.*skip=True"):
        list(named(read_tsv(facts), aliases))


def test_wordnet_files_become_synsets_senses_and_relations(tmp_path):
    (tmp_path / "data.noun").write_text(
        "  1 licence\n"
        "00000020 05 n 02 dog 0 domestic_dog 0 001 @ 00000090 n 0000 | a pet\n"
        "00000090 05 n 01 animal 0 002 ~ 00000020 n 0000 + 00000010 v 0101 | a being\n"
        "00000150 05 n 01 dog 1 000 | a person\n",
        encoding="utf-8",
    )
    (tmp_path / "data.verb").write_text("00000010 29 v 01 live 0 000 01 + 01 00 | to be\n", encoding="utf-8")
    (tmp_path / "index.noun").write_text(
        "  1 licence\ndog n 2 1 @ 2 1 00000150 00000020\nanimal n 1 2 ~ + 1 1 00000090\n", encoding="utf-8"
    )
    graph = KnowledgeGraph.from_triples(read_wordnet(tmp_path, glosses=True))
    assert graph.facts("dog") == [("sense", "dog.n.02"), ("sense", "dog.n.01")]
    assert graph.facts("domestic dog") == [("sense", "dog.n.02")]
    assert graph.facts("dog.n.02") == [("hypernym", "animal.n.01"), ("gloss", "a pet")]
    assert ("derivation", "live.v.01") in graph.facts("animal.n.01")
    with pytest.raises(InputError, match="holds none of WordNet"):
        list(read_wordnet(tmp_path / "nowhere"))


def test_wordnet_says_what_words_and_their_inflected_forms_may_mean(tmp_path):
    nouns = [("run", "02"), ("goose", "05"), ("dog", "05")]
    (tmp_path / "data.noun").write_text(
        "".join(f"{20 * n:08d} 05 n 01 {word} 0 000 | it\n" for n, (word, _) in enumerate(nouns, 1)), encoding="utf-8"
    )
    (tmp_path / "data.verb").write_text(
        "00000010 29 v 01 run 0 000 00 | go\n00000030 29 v 01 dog 0 000 00 | follow\n", encoding="utf-8"
    )
    (tmp_path / "index.noun").write_text(
        "  1 licence\nrun n 1 0 1 0 00000020\ngoose n 1 0 1 0 00000040\ndog n 1 0 1 1 00000060\n", encoding="utf-8"
    )
    (tmp_path / "index.verb").write_text("run v 1 0 1 1 00000010\ndog v 1 0 1 0 00000030\n", encoding="utf-8")
    (tmp_path / "cntlist.rev").write_text("dog%1:05:00:: 1 8\nrun%2:29:00:: 1 3\n", encoding="utf-8")
    (tmp_path / "noun.exc").write_text("geese goose\n", encoding="utf-8")
    lexicon = WordNetLexicon.read_folder(tmp_path)

    def meant(word):
        return {c.entity: round(c.prior, 4) for c in lexicon.candidates(word)}

    assert meant("Dog") == meant("dogs") == {"dog.n.01": 0.9, "dog.v.01": 0.1}  # 8 + 1 against 0 + 1
    assert list(meant("run")) == ["run.v.01", "run.n.01"]
    assert meant("runing") == meant("runed") == {"run.v.01": 1.0}  # verbs' endings say nothing of the noun
    assert meant("geese") == {"goose.n.01": 1.0}
    assert meant("gooses") == {"goose.n.01": 1.0}
    assert meant("cat") == {}
    assert [span for span, _ in candidate_mentions(["the", "dogs", "run"], lexicon)] == [(1, 1), (2, 2)]
    (tmp_path / "cntlist.rev").write_text("dog 1 8\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 1: not a sense key"):
        WordNetLexicon.read_folder(tmp_path)
    (tmp_path / "index.verb").unlink()
    (tmp_path / "cntlist.rev").unlink()
    with pytest.raises(InputError, match=r"index\.verb is not there"):
        WordNetLexicon.read_folder(tmp_path)


# -- sentence trees ----------------------------------------------------------------------------------------------------


@given(triples=TRIPLES, words=st.lists(WORDS, min_size=1, max_size=6), most=st.integers(0, 3))
@settings(max_examples=60, **SETTINGS)
def test_a_tree_sees_what_the_paper_says(triples, words, most):
    graph = KnowledgeGraph.from_triples(triples)
    tree = sentence_tree(words, graph, max_entities=most)
    parts: list[tuple[int, int, str, int]] = []  # word, branch (0 = trunk), character, soft position
    at = 0
    for number, word in enumerate(words):
        parts += [(number, 0, c, at + i) for i, c in enumerate(word)]
        at += len(word)
        for branch, value in enumerate(graph.values(word, limit=most), 1):
            parts += [(number, branch, c, at + i) for i, c in enumerate(value)]
    assert tree.tokens == [c for _, _, c, _ in parts]
    assert tree.positions.tolist() == [p for _, _, _, p in parts]
    assert tree.inserted.tolist() == [b > 0 for _, b, _, _ in parts]
    for (i, (word, branch, _, _)), (j, (other, theirs, _, _)) in itertools.product(enumerate(parts), repeat=2):
        if branch == 0 and theirs == 0:
            seen = True
        elif branch and theirs:
            seen = (word, branch) == (other, theirs)
        else:
            seen = word == other
        assert tree.visible[i, j] == seen


def test_a_batch_of_trees_serves_any_family_with_a_matrix_mask():
    import zoo

    graph = KnowledgeGraph.from_triples([("paris", "capital of", "france"), ("paris", "has", "louvre")])
    words = longest_subjects(["in", "paris", "now"], graph)
    collator = SentenceTreeCollator(
        graph=graph, token_id=lambda t: 5 + len(t), unknown_id=1, pieces=str.split, joiner=" ", segments=0
    )
    batch = collator([words, ["now", "[SEP]", "then"]])
    assert batch["attention_mask"].shape == (2, 8, 8)
    assert batch["token_type_ids"][1].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    for name, first in (("bert-tiny", 0), ("albert-base", 0), ("k-bert-base", 0), ("roberta-base", 2)):
        size = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "intermediate_size": 8, "vocab_size": 30}
        model = zoo.create(name, **size, **({"num_segments": 2} if first else {})).eval()
        batch = replace(collator, first_position=first)([words, ["now", "[SEP]", "then"]])
        batch_of = {key: value for key, value in batch.items() if key != "inserted"}
        before = model(**batch_of).last_hidden_state
        plain = {
            key: batch[key][1:, :3] for key in ("input_ids", "token_type_ids")
        }  # a text without facts, its positions the model's own
        torch.testing.assert_close(before[1:, :3], model(**plain).last_hidden_state)
        louvre = batch["input_ids"].clone()
        louvre[0, 6] = 20  # the last word of the second branch: "in" stands on the trunk and cannot see it
        after = model(**{**batch_of, "input_ids": louvre}).last_hidden_state
        assert torch.equal(before[0, 0], after[0, 0])
        assert not torch.equal(before[0, 1], after[0, 1])


def test_longer_trees_are_cut_and_strings_refused():
    graph = KnowledgeGraph.from_triples([("ab", "x", "y")])
    collator = SentenceTreeCollator(graph=graph, token_id={"a": 7}.get, unknown_id=1, max_length=3, to_max_length=True)
    assert collator([["ab", "c"]])["input_ids"].tolist() == [[7, 1, 1]]
    with pytest.raises(InputError, match="a list of words"):
        collator(["ab c"])
    with pytest.raises(ConfigError, match="max_length=0"):
        SentenceTreeCollator(graph=graph, token_id={}.get, unknown_id=1, max_length=0)


def test_two_facts_of_a_hub_cost_no_more_than_two_facts(monkeypatch):
    graph = KnowledgeGraph.from_triples(("hub", "is", f"thing {i}") for i in range(1000))
    read = []
    monkeypatch.setattr(graph, "_string", lambda number, own=graph._string: read.append(number) or own(number))
    assert graph.values("hub", limit=2, joiner=" ") == ["is thing 0", "is thing 1"]
    assert len(read) <= 5
    assert graph.values("hub", limit=0) == []


# -- mentions and lexicons ---------------------------------------------------------------------------------------------


def test_mentions_become_tokens_and_bad_ones_are_refused():
    offsets = [(0, 0), (0, 3), (4, 7), (7, 9), (0, 0)]
    spans = token_spans([Mention("Q1", 4, 9), Mention("Q2", 1, 2)], offsets, 9)
    assert [(s.entity, s.first, s.last) for s in spans] == [("Q1", 2, 3), ("Q2", 1, 1)]
    with pytest.raises(InputError, match=r"spans the characters 4\.\.12, which must lie in 0\.\.9"):
        token_spans([Mention("Q1", 4, 12)], offsets, 9)
    with pytest.raises(InputError, match="no token stands"):
        token_spans([Mention("Q1", 3, 4)], offsets, 9)


def test_marks_stand_around_mentions_which_move():
    text = "jim henson made kermit ."
    made, head = Mention("Q2", 16, 22, 0.5), Mention("Q1", 0, 10)
    shown, (tail, moved) = marked(text, [made, head], ["$", "#"])
    assert shown == "# jim henson # made $ kermit $ ."
    assert (shown[tail.start : tail.end], shown[moved.start : moved.end], tail.score) == ("kermit", "jim henson", 0.5)
    assert marked(text, [made, head], ["", ""]) == (text, [made, head])
    with pytest.raises(InputError, match="overlaps one that ends at 10"):
        marked(text, [head, Mention("Q3", 4, 12)], ["#", "$"])
    with pytest.raises(InputError, match=r"must lie in 0\.\.24"):
        marked(text, [Mention("Q3", 20, 30)], ["#"])
    with pytest.raises(InputError, match="one mark for each of the 1 mentions, got 2"):
        marked(text, [head], ["#", "$"])


def test_an_entity_stands_at_its_first_piece_and_a_doubtful_one_nowhere():
    mentions = [Mention("Q1", 0, 9, 0.9), Mention("Q2", 10, 12, 0.1)]
    text = "jim  henson is"
    tokens, entities = first_pieces(
        text, [mentions[0], Mention("Q3", 5, 11, 0.5)], lambda w: [w[:3], "##" + w[3:]][: 1 + (len(w) > 3)]
    )
    assert tokens == ["jim", "hen", "##son", "is"]
    assert entities == ["Q1", "Q3", None, None]
    assert first_pieces("a b", [Mention("Q", 2, 3, 0.1)], list, threshold=0.3)[1] == [None, None]


def test_a_lexicon_looks_up_by_its_casing_and_refuses_doubles():
    entries = {"Paris": (9, [Candidate("Paris", 0.9)]), "paris": (1, [Candidate("Plant", 1.0)])}
    assert EntityLexicon(entries).candidates("PARIS") == ()
    assert EntityLexicon(entries, casing="title").candidates("paris")[0].entity == "Paris"
    assert EntityLexicon(entries, casing="title").candidates("PARIS")[0].entity == "Paris"
    with pytest.raises(InputError, match="stands twice"):
        EntityLexicon(entries, casing="lower")
    with pytest.raises(UnknownNameError, match="'title'"):
        EntityLexicon({}, casing="titel")
    with pytest.raises(InputError, match="line 1 of the priors"):
        EntityLexicon.read(["Paris\tmany\t1,0.5,Paris"])


def test_candidates_skip_stop_words_and_sum_to_one():
    lexicon = EntityLexicon(
        {"bank of france": (1, [Candidate("Bank", 0.2), Candidate("Paris", 0.2)]), "of": (1, [Candidate("O", 1.0)])}
    )
    found = candidate_mentions(
        ["the", "bank", "of", "france", ",", "of"], lexicon, stop_words={"of", "the"}, stop_symbols={","}
    )
    assert [(span, [c.prior for c in candidates]) for span, candidates in found] == [((1, 3), [0.5, 0.5])]


TABLE = EntityTable(["dog.n.01", "dog.v.01", "york.n.01"], special=KNOWBERT_SPECIAL)


def test_mentions_become_candidates_over_pieces():
    collate = CandidateCollator(table=TABLE)
    dog = [Candidate("dog.n.01", 0.9), Candidate("dog.v.01", 0.1)]
    texts = [
        [((1, 1), dog), ((2, 3), [Candidate("york.n.01", 1.0)])],
        [],
    ]  # [CLS] dogs new york [SEP]: "dogs" has two pieces
    made = collate(texts, [[1, 2, 1, 1, 1], [1, 1]])
    assert made.spans.tolist() == [[[1, 2], [3, 4]], [[-1, -1], [-1, -1]]]
    assert made.ids.tolist() == [[[4, 5], [6, 0]], [[0, 0], [0, 0]]]
    torch.testing.assert_close(made.priors[0], torch.tensor([[0.9, 0.1], [1.0, 0.0]]))
    made.check((2, 6), len(TABLE))
    assert replace(collate, max_length=4)(texts, [[1, 2, 1, 1, 1], [1, 1]]).spans.tolist() == [[[1, 2]], [[-1, -1]]]
    assert collate([[]], [[1, 1]]).spans.tolist() == [[[-1, -1]]]
    with pytest.raises(InputError, match=r"\(1, 5\) lies outside the text: 0 <= first <= last < 5"):
        collate([[((1, 5), dog)]], [[1, 2, 1, 1, 1]])
    with pytest.raises(UnknownNameError, match=r"'cat\.n\.01'.*'dog\.n\.01'"):
        collate([[((0, 0), [Candidate("cat.n.01", 1.0)])]], [[1]])
    with pytest.raises(InputError, match="each of the 1 texts, got 2"):
        collate([[]], [[1], [1]])
    with pytest.raises(ConfigError, match="special=KNOWBERT_SPECIAL"):
        CandidateCollator(table=EntityTable(["a"]))


@given(seed=st.integers(0, 99), masked=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=20, **SETTINGS)
def test_masked_words_hide_what_their_spans_mean(seed, masked):
    generator = torch.Generator().manual_seed(seed)
    spans = torch.tensor([[[0, 1], [3, 3], [-1, -1]], [[2, 4], [5, 5], [0, 5]]])
    ids = torch.tensor([[[4, 5], [6, 0], [0, 0]], [[5, 6], [4, 0], [6, 4]]])
    corrupted = torch.rand(2, 6, generator=generator) < 0.3
    given_to = Candidates(spans, ids, (ids > 0) / (ids > 0).sum(2, keepdim=True).clamp(min=1))
    hidden = CandidateCollator(table=TABLE, masked=masked, replaced=1 - masked).hide(given_to, corrupted, generator)
    assert torch.equal(hidden.spans, spans)
    for row, place in itertools.product(range(2), range(3)):
        first, last = spans[row, place].tolist()
        mine, now = ids[row, place].tolist(), hidden.ids[row, place].tolist()
        if first < 0 or not any(corrupted[row, first : last + 1].tolist()):
            assert now == mine
            assert torch.equal(hidden.priors[row, place], given_to.priors[row, place])
        elif now[0] == KNOWBERT_SPECIAL.index("@@MASK@@"):
            assert masked > 0
            assert now == [2, 0]
            assert hidden.priors[row, place].tolist() == [1.0, 0.0]
        else:
            assert masked < 1
            assert [n > 0 for n in now] == [n > 0 for n in mine]
            assert all(n == 0 or 4 <= n < len(TABLE) for n in now)


def test_the_shares_of_hidden_spans_are_those_of_the_paper():
    spans = torch.zeros(1, 4000, 2, dtype=torch.int64)
    ids = torch.full((1, 4000, 1), 4)
    wide = EntityTable(map(str, range(1000)), special=KNOWBERT_SPECIAL)
    collate = CandidateCollator(table=wide)
    hidden = collate.hide(
        Candidates(spans, ids, torch.ones(1, 4000, 1)), torch.tensor([[True]]), torch.Generator().manual_seed(0)
    )
    shares = [float((hidden.ids == 2).double().mean()), float((hidden.ids == 4).double().mean())]
    assert shares == pytest.approx([0.8, 0.1], abs=0.03)
    with pytest.raises(InputError, match="reach as far as the spans do"):
        collate.hide(Candidates(spans + 1, ids, torch.ones(1, 4000, 1)), torch.tensor([[True]]))


def test_entity_tables_number_their_names_once(tmp_path):
    (tmp_path / "entity2id.txt").write_text("2\nQ5\t1\nQ1\t0\n", encoding="utf-8")
    (tmp_path / "entity2vec.vec").write_text("1\t2\n3\t4\n", encoding="utf-8")
    table = EntityTable.read(tmp_path / "entity2id.txt", tmp_path / "entity2vec.vec")
    assert (table.row(None), table.row("Q1"), table.row("Q5")) == (0, 1, 2)
    assert np.array_equal(table.vectors, [[0, 0], [1, 2], [3, 4]])
    with pytest.raises(UnknownNameError, match="'Q5'"):
        table.row("Q6")
    with pytest.raises(UnknownNameError, match=r"'x'; it is none of the 20,001 there are"):
        EntityTable(map(str, range(20_000))).row("x")
    with pytest.raises(InputError, match="'a' stands twice"):
        EntityTable(["a", "b", "a"])
    with pytest.raises(InputError, match=r"shape \(1, width\)"):
        EntityTable(["a"], vectors=np.zeros((2, 3)))


# -- n-grams -----------------------------------------------------------------------------------------------------------


@given(
    text=st.lists(st.sampled_from("abc"), max_size=12),
    grams=st.lists(st.text("abc", min_size=1, max_size=8), max_size=8),
)
@settings(max_examples=60, **SETTINGS)
def test_every_n_gram_that_occurs_is_found(text, grams):
    numbers = {tuple(gram): number for number, gram in enumerate(grams, 1)}
    wanted = [
        (numbers[tuple(text[q : q + p])], q, p)
        for p in range(2, 8)
        for q in range(len(text) - p + 1)
        if tuple(text[q : q + p]) in numbers
    ]
    assert [(m.number, m.start, m.length) for m in NGramLexicon(grams).matches(text)] == wanted


def test_extraction_cuts_where_neighbors_do_not_belong_together():
    texts = [list("京都人"), list("京都x"), list("y京都"), list("都x"), list("人y")] * 3
    counts = dict(extract_ngrams(texts, min_count=3, min_pmi=math.log(1.5)))
    assert counts[("京", "都")] == 9
    assert ("都", "x") not in counts or counts[("都", "x")] == 6
    assert all(count >= 3 for count in counts.values())
    assert extract_ngrams(texts, min_count=10) == []


def test_the_share_of_n_grams_grows_with_the_text():
    collator = NGramCollator(lexicon=NGramLexicon(["aa"]), max_length=10, max_ngrams=5)
    assert len(collator.choose(["a"] * 4)) == 2
    batch = collator([["a"] * 4, ["b", "a", "a"]], [2, 1], generator=torch.Generator().manual_seed(0))
    assert batch["ngram_positions"][1].tolist() == [[0, 0], [1, 0], [1, 0], [0, 0]]
    assert batch["ngram_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["ngram_token_type_ids"][1].tolist() == [1, 0]


# -- masking -----------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 999), length=st.integers(1, 40), ratio=st.sampled_from([0.15, 0.5, 1.0]), outer=st.booleans()
)
@settings(max_examples=60, **SETTINGS)
def test_spans_meet_their_budget_begin_at_words_and_do_not_touch(seed, length, ratio, outer):
    rng = random.Random(seed)
    tokens = [rng.randrange(5, 50) for _ in range(length)]
    scheme = SpanBertMasking(mask_id=4, starts=lambda t: t % 3 > 0, ratio=ratio, outer=outer, max_targets=3)
    spans = scheme.spans(tokens, RandomSpanDraws(rng))
    covered = [p for first, last in spans for p in range(first, last + 1)]
    assert len(covered) == len(set(covered)) == math.ceil(length * ratio)
    assert all(b[0] > a[1] + 1 for a, b in itertools.pairwise(spans))
    assert all(first == 0 or tokens[first] % 3 or tokens[first - 1] in tokens for first, _ in spans)
    masked = scheme(tokens, tokens, RandomSpanDraws(random.Random(seed)))
    assert [p for p, t in enumerate(masked.targets) if t] == sorted(
        p for p, t in enumerate(masked.targets) if t == tokens[p]
    )
    for left, right, *words in masked.pairs:
        inside = range(left + 1, right) if outer else range(left, right + 1)
        assert [w for w in words if w] == [tokens[p] for p in inside][:3]


def test_a_segmenters_words_are_marked_and_masked_whole():
    from zoo.data.masking import word_units, wordpiece_start

    tokens = ["[CLS]", "使", "用", "语", "言", "模", "型", "bert", "##s", "[SEP]"]
    marked = mark_words(tokens, ["使用", "语言", "模型", " berts"])
    assert marked == ["[CLS]", "使", "##用", "语", "##言", "模", "##型", "bert", "##s", "[SEP]"]
    assert word_units(marked, ("[CLS]", "[SEP]"), wordpiece_start) == [[1, 2], [3, 4], [5, 6], [7, 8]]
    with pytest.raises(InputError, match="make up 2 letters, the tokens 11"):
        mark_words(tokens, ["使用"])
    with pytest.raises(InputError, match="pass segmenter"):
        mark_words(tokens, str.split)


def test_without_jieba_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingExtraError, match=r"extended-zoo\[chinese\]"):
        jieba_segmenter()


def test_jieba_cuts_chinese_into_words():
    pytest.importorskip("jieba")
    text = "使用语言模型来预测"
    words = list(jieba_segmenter()(text))
    assert "".join(words) == text
    assert {"使用", "语言", "模型", "预测"} <= set(words)
    assert mark_words(["[CLS]", *text], words) == [
        "[CLS]",
        "使",
        "##用",
        "语",
        "##言",
        "模",
        "##型",
        "来",
        "预",
        "##测",
    ]


def test_a_unit_is_masked_whole_and_special_tokens_never():
    labels = unit_labels([[7, 8], [9]])
    assert labels == [-1, 0, 1, 0, -1]
    corrupted_ids, targets = knowledge_masking([1, 7, 8, 9, 2], labels, [0.0, 0.1, 0.9, 0.5, 0.0], [5] * 5, 3)
    assert corrupted_ids == [1, 3, 3, 9, 2]
    assert targets == [-100, 7, 8, -100, -100]
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(4, 16).reshape(2, 6)
    units = torch.tensor([[-1, 0, 0, 1, 1, -1], [-1, 2, 2, 2, 3, -1]])
    _, labels_of = unit_masking(ids, units, 3, 50, rate=0.5, generator=generator)
    chosen = labels_of != -100
    for row, unit in ((0, [1, 2]), (0, [3, 4]), (1, [1, 2, 3])):
        assert len({bool(chosen[row, p]) for p in unit}) == 1
    assert chosen.sum() >= 2
    assert not chosen[:, [0, 5]].any()


def test_entities_are_denoised_as_often_as_stated():
    vectors = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 6, (40, 50), generator=torch.Generator().manual_seed(1))
    made = EntityDenoising(vectors=vectors)(ids, torch.Generator().manual_seed(2))
    assert (made["entity_labels"] == ids + 1).all()
    assert torch.equal(made["entity_candidates"], torch.cat([torch.zeros(1, 3), vectors]))
    dropped = (made["entity_embeds"] == 0).all(2)
    assert abs(float(dropped.double().mean()) - 0.15) < 0.03
    assert made["entity_mask"][:, 0].all()
    with pytest.raises(InputError, match=r"must lie in 0\.\.5"):
        EntityDenoising(vectors=vectors).batch(torch.tensor([[6]]))
    assert thinned([4, 4, 4, 5, -1, 4]) == [4, -1, 4, 5, -1, 4]


# -- TransE ------------------------------------------------------------------------------------------------------------


def test_transe_learns_a_ring_and_ranks_it_first():
    generator = torch.Generator().manual_seed(0)
    facts = torch.tensor([[i, 0, (i + 1) % 6] for i in range(5)])  # a line: every entity follows the one before
    known = {tuple(fact) for fact in facts.tolist()}
    model = TransE(TransEConfig(num_entities=6, num_relations=1, size=8, normalize=False))
    model.init_weights(generator)
    before = link_scores(ranks(model, facts, known))["mrr"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(150):
        batch = torch.cat([facts, corrupted(facts, 6, 4, known=known, generator=generator)])
        loss = MarginLoss(1.0)(*split_scores(model(*batch.T), len(facts)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = link_scores(ranks(model, facts, known))
    assert after["mrr"] > max(before, 0.9)
    assert after["hits@1"] <= after["hits@3"] <= after["hits@10"] == 1.0
    with pytest.raises(InputError, match=r"tails must lie in 0\.\.5, got 6"):
        model(torch.tensor([0]), torch.tensor([0]), torch.tensor([6]))
    with pytest.raises(InputError, match="positives"):
        split_scores(torch.zeros(7), 5)


def test_corruption_never_gives_a_known_fact():
    known = {(h, 0, t) for h, t in itertools.product(range(4), range(4)) if h != t}
    facts = torch.tensor(sorted(known))
    negatives = corrupted(facts, 6, 3, known=known, generator=torch.Generator().manual_seed(1), rounds=200)
    assert not {tuple(fact) for fact in negatives.tolist()} & known
    changed = (negatives != facts.repeat(3, 1)).sum(1)
    assert set(changed.tolist()) == {1}


def test_the_module_lies_where_the_wheel_takes_it():
    assert Path(sys.modules["zoo.data.knowledge"].__file__ or "").parent.name == "knowledge"
