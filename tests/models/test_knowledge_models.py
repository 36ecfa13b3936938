"""What the common tests can't draw: candidates of KnowBert, entities of ERNIE, n-grams of ZEN, and
the losses of their tasks.
"""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zoo
from benchmarks.fuzz_readers import lod_tensor
from tests.families import ernie_thu, knowbert, zen
from tests.strategies import build, randomised, relative
from zoo.data.candidates import Candidates
from zoo.errors import ConfigError, InputError
from zoo.formats.memory import DictArchive
from zoo.maps import layouts
from zoo.models.ernie_thu import ErnieThuConfig
from zoo.models.k_bert import KBertConfig, StandardDeviationNorm
from zoo.models.zen import valid_first
from zoo.tasks.knowledge import linked_entities
from zoo.tasks.losses import linking_loss

SETTINGS = {"deadline": None, "derandomize": True, "max_examples": 12}
TOLERANCE = 1e-12


def candidates_for(config, rows: int, length: int, seed: int) -> dict[str, Candidates]:
    """Spans in most texts, one text without any."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, source in config.knowledge.items():
        first = torch.randint(0, length, (rows, 3), generator=generator)
        last = torch.minimum(first + torch.randint(0, 3, (rows, 3), generator=generator), torch.tensor(length - 1))
        spans = torch.stack([first, last], 2)
        spans[:, 2] = -1
        spans[0] = -1
        ids = torch.randint(0, source.entities, (rows, 3, 2), generator=generator)
        found[name] = Candidates(
            spans, ids.masked_fill(spans[:, :, :1] < 0, 0), torch.rand(rows, 3, 2, generator=generator).double()
        )
    return found


@given(data=st.data())
@settings(**SETTINGS)
def test_linking_is_the_same_packed_and_padded_in_any_order_and_with_more_empty_spans(data):
    config = knowbert.tiny_config(data.draw).replace(max_positions=12)
    model = build("knowbert", config, seed=data.draw(st.integers(0, 99)))
    ids = torch.randint(1, config.vocab_size, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(6) < torch.tensor([4, 6, 3])[:, None]
    given_to = candidates_for(config, 3, 3, data.draw(st.integers(0, 99)))
    with torch.no_grad():
        packed = model(ids, mask, entity_candidates=given_to)
        written = model(ids, mask, entity_candidates=given_to, output_attentions=True)
        with zoo.packing(False):
            padded = model(ids, mask, entity_candidates=given_to)
        order = torch.tensor([2, 0, 1])
        moved = {n: Candidates(c.spans[order], c.ids[order], c.priors[order]) for n, c in given_to.items()}
        mixed = model(ids[order], mask[order], entity_candidates=moved)
        more = {
            n: Candidates(*(torch.cat([x, fill.expand(3, 2, x.shape[2]).to(x.dtype)], 1) for x, fill in zip(
                (c.spans, c.ids, c.priors), (torch.tensor(-1), torch.tensor(0), torch.tensor(0.0)), strict=True)))
            for n, c in given_to.items()
        }  # fmt: skip
        longer = model(ids, mask, entity_candidates=more)
    for other in (written, padded, longer):
        assert relative(other.last_hidden_state, packed.last_hidden_state) <= TOLERANCE
    assert relative(mixed.last_hidden_state, packed.last_hidden_state[order]) <= TOLERANCE
    for name, links in packed.links.items():
        assert relative(links.scores, padded.links[name].scores) <= TOLERANCE
        assert relative(longer.links[name].scores[:, :3], links.scores) <= TOLERANCE
        looked = written.links[name].attention.sum(3).transpose(1, 2)
        assert torch.allclose(looked[mask], torch.ones_like(looked[mask]))


@given(data=st.data())
@settings(**SETTINGS)
def test_linking_is_what_the_paper_writes(data):
    """One KAR against loops over spans and candidates."""
    config = knowbert.tiny_config(data.draw)
    if not config.knowledge:
        return
    model = build("knowbert", config)
    name, source = next(iter(config.knowledge.items()))
    linker = model.knowledge[name].linker
    words = torch.randn(2, 5, source.entity_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spans = torch.tensor([[[0, 2], [1, 1]], [[3, 4], [-1, -1]]])
    pooled = linker.pool(words, spans)
    for row in range(2):
        for place, (first, last) in enumerate(spans[row].tolist()):
            if first < 0:
                assert not pooled[row, place].any()
                continue
            inside = words[row, first : last + 1]
            weights = torch.softmax(linker.span_scorer(inside)[:, 0], 0)
            assert torch.allclose(pooled[row, place], (weights[:, None] * inside).sum(0))


def test_the_margin_loss_is_the_hinge_of_each_candidate_and_softmax_that_of_each_span():
    scores = torch.tensor([[[0.5, -0.3, -10_000.0], [0.1, 0.0, -10_000.0]]], dtype=torch.float64)
    ids = torch.tensor([[[7, 8, 0], [9, 3, 0]]])
    gold = torch.tensor([[7, 3]])
    hinges = [max(0, 0.2 - 0.5), max(0, 0.2 - 0.3), max(0, 0.2 + 0.1), max(0, 0.2 - 0.0)]
    assert float(linking_loss("margin", scores, ids, gold)) == pytest.approx(sum(hinges) / 4)
    likely = [scores[0, 0].log_softmax(0)[0], scores[0, 1].log_softmax(0)[1]]
    assert float(linking_loss("softmax", scores, ids, gold)) == pytest.approx(-float(sum(likely)) / 2)
    candidates = Candidates(torch.tensor([[[0, 1], [2, 2]]]), ids, torch.zeros(1, 2, 3))
    assert linked_entities(scores, candidates, 0.0, 9).tolist() == [[0, 0, 1, 7]]


@pytest.mark.parametrize(
    ("spans", "ids", "says"),
    [
        ([[[0, 9]]], [[[1]]], r"the span \[0, 9\] lies outside the text"),
        ([[[2, 1]]], [[[1]]], r"the span \[2, 1\] lies outside"),
        ([[[0, 1]]], [[[99]]], r"ids must lie in 0\.\.8, got 99"),
        ([[[0, 1], [1, 1]]], [[[1]]], "ids and priors must be"),
    ],
)
def test_wrong_candidates_are_refused(spans, ids, says):
    sizes = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_layers": 1,
        "num_heads": 1,
        "intermediate_size": 4,
        "max_positions": 9,
    }
    model = zoo.create("knowbert-wiki", wiki_layer=0, wiki_entities=9, wiki_entity_size=4, **sizes)
    ids = torch.tensor(ids)
    with pytest.raises(InputError, match=says):
        model(
            torch.ones(1, 5, dtype=torch.int64),
            entity_candidates={"wiki": Candidates(torch.tensor(spans), ids, ids.float())},
        )
    with pytest.raises(InputError, match="this model knows wiki"):
        model(
            torch.ones(1, 5, dtype=torch.int64),
            entity_candidates={"wordnet": Candidates(torch.tensor(spans), ids, ids.float())},
        )


@pytest.mark.parametrize("place", [5, -1])
def test_a_boundary_outside_the_text_is_refused(place):
    sizes = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_layers": 1,
        "num_heads": 1,
        "intermediate_size": 4,
        "max_positions": 9,
    }
    model = zoo.create("spanbert-base", task="pretraining", **sizes)
    ids = torch.ones(1, 5, dtype=torch.int64)
    assert model(ids, pairs=torch.tensor([[[0, 4]]])).scores["span_boundary"].shape == (1, 1, 15, 9)
    with pytest.raises(InputError, match=rf"at places 0\.\.4, got {place}"):
        model(ids, pairs=torch.tensor([[[0, place]]]))


def test_knowbert_learns_to_link():
    sizes = {
        "vocab_size": 12,
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 16,
        "max_positions": 8,
    }
    torch.manual_seed(0)
    model = zoo.create(
        "knowbert-wiki",
        task="entity-linking",
        wiki_layer=0,
        wiki_entities=12,
        wiki_entity_size=8,
        dropout=0.0,
        attention_dropout=0.0,
        generator=torch.Generator().manual_seed(0),
        **sizes,
    )
    ids = torch.arange(4, 12)[:, None].expand(-1, 3)
    spans, gold = torch.tensor([[[0, 2]]]).expand(8, 1, 2), torch.arange(4, 12)[:, None]
    wrong = (gold - 4 + 3) % 8 + 4
    candidates = {"wiki": Candidates(spans, torch.stack([gold, wrong], 2), torch.full((8, 1, 2), 0.5))}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        out = model(ids, entity_candidates=candidates, gold_entities={"wiki": gold})
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert (out.scores["wiki"].argmax(2) == 0).all()


@given(data=st.data())
@settings(**SETTINGS)
def test_entities_and_n_grams_are_the_same_packed_and_padded(data):
    for module, name in ((ernie_thu, "ernie-thu"), (zen, "zen")):
        config = module.tiny_config(data.draw)
        batch = module.inputs(data.draw, config)
        model = build(name, config)
        with torch.no_grad():
            packed = model(**batch.inputs, output_hidden_states=True)
            with zoo.packing(False):
                padded = model(**batch.inputs, output_hidden_states=True)
        assert relative(packed.last_hidden_state, padded.last_hidden_state) <= TOLERANCE
        if getattr(packed, "entity", None) is not None:
            assert relative(packed.entity.last_hidden_state, padded.entity.last_hidden_state) <= TOLERANCE
            for a, b in zip(packed.entity.hidden_states, padded.entity.hidden_states, strict=True):
                assert relative(a, b) <= TOLERANCE


def test_only_mentioned_entities_reach_the_text():
    config = ErnieThuConfig(
        vocab_size=9,
        hidden_size=4,
        num_layers=2,
        num_heads=1,
        intermediate_size=5,
        max_positions=8,
        entity_size=2,
        entity_heads=1,
    )
    model = build("ernie-thu", config)
    ids = torch.tensor([[1, 2, 3, 4]])
    vectors, mask = torch.randn(1, 4, 2, dtype=torch.float64), torch.tensor([[1, 0, 1, 0]])
    other = vectors.clone()
    other[0, [1, 3]] += 1
    with torch.no_grad():
        same = model(ids, entity_embeds=vectors, entity_mask=mask).last_hidden_state
        assert torch.equal(same, model(ids, entity_embeds=other, entity_mask=mask).last_hidden_state)
        other[0, 2] += 1
        assert not torch.equal(same, model(ids, entity_embeds=other, entity_mask=mask).last_hidden_state)
    with pytest.raises(InputError, match="entity_embeds must be"):
        model(ids, entity_embeds=vectors[:, :3])
    with pytest.raises(InputError, match="without entity_embeds"):
        model(ids, entity_mask=mask)
    with pytest.raises(ConfigError, match="layer_types names 3 layers, num_layers=2"):
        config.replace(layer_types=("sim", "mix", "norm"))


def test_the_released_ernie_has_five_plain_layers_one_that_mixes_and_six_that_aggregate():
    assert zoo.config("ernie-thu-base").layer_types == ("sim",) * 5 + ("mix",) + ("norm",) * 6


def test_valid_states_move_to_the_front():
    hidden = torch.arange(1.0, 9).reshape(2, 4, 1)
    moved = valid_first(hidden, torch.tensor([[0, 1, 0, 1], [1, 1, 1, 1]]))
    assert moved[..., 0].tolist() == [[2, 4, 0, 0], [5, 6, 7, 8]]


def test_k_berts_norm_divides_by_the_unbiased_deviation_plus_eps():
    norm = randomised(StandardDeviationNorm(5, eps=0.1).double())
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for row, out in zip(x.tolist(), norm(x), strict=True):
        mean = sum(row) / 5
        deviation = (sum((v - mean) ** 2 for v in row) / 4) ** 0.5
        wanted = [
            w * (v - mean) / (deviation + 0.1) + b
            for v, w, b in zip(row, norm.weight.tolist(), norm.bias.tolist(), strict=True)
        ]
        assert torch.allclose(out, torch.tensor(wanted, dtype=torch.float64))
    with pytest.raises(ConfigError, match="one number has no standard deviation"):
        KBertConfig(hidden_size=1, num_heads=1)


def source_of_knowledge(size: int, **linker: object) -> dict[str, object]:
    """A source as KnowBert's archives describe one."""
    inner = {"hidden_size": size, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 1024}
    kind = "entity_linking_with_candidate_mentions"
    linking = {"type": kind, "contextual_embedding_dim": 768, "span_encoder_config": inner, **linker}
    return {
        "type": "soldered_kg",
        "should_init_kg_to_bert_inverse": False,
        "entity_linker": linking,
        "span_attention_config": inner,
    }


def test_an_archives_own_config_describes_the_released_knowbert():
    words = {"type": "wordnet_all_embeddings", "entity_dim": 200, "entity_h5_key": "tucker_gensen"}
    tables = {"vocab_namespace": "entity_wiki", "embedding_dim": 300, "trainable": False, "sparse": False}
    sources = {
        "wordnet": source_of_knowledge(
            200, namespace="entity_wordnet", loss_type="softmax", concat_entity_embedder=words
        ),
        "wiki": source_of_knowledge(300, namespace="entity_wiki", entity_embedding=tables),
    }
    told = {"type": "knowbert", "bert_model_name": "bert-base-uncased", "model_archive": "linker.tar.gz"}
    model_part = {**told, "soldered_layers": {"wordnet": 10, "wiki": 9}, "soldered_kgs": sources}
    around = {
        "vocabulary": {"directory_path": "v"},
        "dataset_reader": {"type": "multitask_reader"},
        "iterator": {},
        "trainer": {},
    }
    config = zoo.config("knowbert-wiki-wordnet").replace(wiki_entities=50, wordnet_entities=60)
    model = zoo.create("knowbert-wiki-wordnet", device="meta", wiki_entities=50, wordnet_entities=60)
    keymap = layouts.load("knowbert")
    tensors = model.state_dict()
    archive = DictArchive(keymap.back(DictArchive(tensors).tensors, config.to_dict()).run(tensors.__getitem__))
    made = keymap.config_forward({**around, "model": model_part}, archive.tensors)
    assert {name: value for name, value in config.to_dict().items() if name in made} == made
    assert {f"wiki_{f}" for f in ("layer", "entities", "entity_size", "span_heads")} <= made.keys()
    with pytest.raises(ConfigError, match="bert-large-cased"):
        keymap.config_forward({"model": {**model_part, "bert_model_name": "bert-large-cased"}}, archive.tensors)


def test_a_folder_that_paddle_saved_is_the_same_ernie(tmp_path):
    sizes = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "max_positions": 9,
    }
    model = zoo.create("ernie-2-base", task="pretraining", **sizes, num_tasks=3, activation="relu")
    config = randomised(model).config
    tensors = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    keymap = layouts.load("paddle-ernie")
    heads = ("masked_lm", "next_sentence")
    theirs = keymap.back(DictArchive(tensors).tensors, config.to_dict(), heads=heads).run(tensors.__getitem__)
    (tmp_path / "params").mkdir()
    for name, tensor in theirs.items():
        (tmp_path / "params" / name).write_bytes(lod_tensor(tensor.numpy()))
    said = {"sent_type_vocab_size": 4, "task_type_vocab_size": 3, "max_position_embeddings": 9, "hidden_act": "relu"}
    said |= {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    (tmp_path / "ernie_config.json").write_text(json.dumps(said), encoding="utf-8")
    ids = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        expected = model.eval()(ids, task_type_ids=torch.tensor([1])).prediction_logits
        found = zoo.load(tmp_path, task="masked-lm").eval()(ids, task_type_ids=torch.tensor([1])).logits
    torch.testing.assert_close(found, expected)
