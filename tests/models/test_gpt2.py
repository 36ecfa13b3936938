"""GPT-2 beyond the common properties: the label behind each token, the last token's vector, ranks of Megatron, and what
transformers makes of a folder that is written for it.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import zoo
from tests.families import gpt2
from tests.oracle import hugging_face, taught
from tests.references.case import golden_cases, load_case
from tests.strategies import build, relative, small_config
from zoo.errors import TaskError
from zoo.layers.cache import KeyValueCache
from zoo.layers.padding import Padding
from zoo.maps import layouts
from zoo.models.gpt2 import LastTokenPooler
from zoo.tasks.losses import next_labels

IDS = torch.randint(1, 19, (3, 6), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 1]])


def test_the_label_of_a_token_is_that_of_the_next_real_one():
    labels = torch.arange(18).reshape(3, 6)
    assert next_labels(labels, None).tolist()[1] == [7, 8, 9, 10, 11, -100]
    assert next_labels(labels, MASK.bool()).tolist() == [
        [1, 2, 3, -100, -100, -100],
        [-100, -100, 9, 10, 11, -100],
        [14, -100, 15, 17, -100, -100],
    ]


@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_is_the_mean_over_each_next_token_wherever_padding_stands(packed):
    model = build("gpt2", small_config("gpt2"), "causal-lm", seed=1)
    with torch.no_grad(), zoo.packing(packed):
        loss = model(IDS, MASK, labels=IDS).loss
        terms = []
        for ids, real in zip(IDS, MASK.bool(), strict=True):
            text, places = ids[real], torch.arange(6)[real]
            logits = model(text[None], position_ids=places[None]).logits[0]
            terms += [logits[t].logsumexp(0) - logits[t, text[t + 1]] for t in range(len(text) - 1)]
    assert relative(loss, torch.stack(terms).mean()) < 1e-12


def test_labels_must_be_whole_numbers_of_the_vocabulary():
    model = build("gpt2", small_config("gpt2"), "causal-lm")
    with pytest.raises(TaskError, match=r"must lie in 0\.\.18"):
        model(IDS, labels=IDS + 19)
    with pytest.raises(TaskError, match="must hold integers"):
        model(IDS, labels=IDS.float())
    with pytest.raises(TaskError, match=r"must have shape \(3, 6\)"):
        model(IDS, labels=IDS[:, :5])


def test_a_later_token_changes_nothing_before_it():
    model = build("gpt2", small_config("gpt2"), seed=2)
    other = IDS.clone()
    other[:, 4] = (other[:, 4] + 1) % 19
    with torch.no_grad():
        a, b = model(IDS).last_hidden_state, model(other).last_hidden_state
    assert torch.equal(a[:, :4], b[:, :4])
    assert (a[:, 4:] != b[:, 4:]).any(2).all()


@pytest.mark.parametrize("cut", [1, 3])
def test_a_text_behind_a_cache_has_the_states_that_it_has_in_one_pass(cut):
    model = build("gpt2", small_config("gpt2"), seed=2)
    places = (MASK.cumsum(1) - 1).clamp(min=0)  # wherever padding stands
    cache = KeyValueCache()
    with torch.no_grad():
        whole = model(IDS, MASK, position_ids=places).last_hidden_state
        parts = [
            model(IDS[:, part], MASK[:, part], position_ids=places[:, part], cache=cache).last_hidden_state
            for part in (slice(cut), *(slice(t, t + 1) for t in range(cut, 6)))
        ]
    assert relative(torch.cat(parts, 1)[MASK.bool()], whole[MASK.bool()]) < 1e-12
    with torch.no_grad():
        plain, cache = model(IDS).last_hidden_state, KeyValueCache()
        model(IDS[:, :cut], cache=cache)
        assert relative(model(IDS[:, cut:], cache=cache).last_hidden_state, plain[:, cut:]) < 1e-12


def test_the_pooled_vector_is_the_last_real_tokens_state():
    model = build("gpt2", small_config("gpt2"), seed=2)
    with torch.no_grad():
        result = model(IDS, MASK)
    assert torch.equal(result.pooler_output, result.last_hidden_state[torch.arange(3), torch.tensor([3, 5, 5])])
    states = torch.randn(2, 3, 4)
    assert torch.equal(LastTokenPooler()(states, Padding(None, (2, 3))), states[:, -1])


def test_a_label_of_a_text_is_read_from_its_last_token_as_in_transformers():
    options = {"num_labels": 3}
    ours = build("gpt2", small_config("gpt2", pad_token_id=0), "sequence-classification", seed=3, **options)
    class_name = "GPT2ForSequenceClassification"
    theirs = taught(gpt2.LAYOUT, hugging_face(gpt2.LAYOUT, class_name, ours.config, options), ours)
    padded = IDS.masked_fill(MASK == 0, 0)  # theirs finds the last token by its id
    with torch.no_grad():
        mine = ours(IDS, MASK).logits
        reference = theirs(padded, attention_mask=MASK).logits
    assert relative(mine, reference) < 1e-9


def test_projections_into_the_residual_start_smaller():
    model = zoo.create("gpt2", generator=torch.Generator().manual_seed(0), num_layers=8, hidden_size=96, vocab_size=99)
    for block in model.encoder.blocks:
        for part, std in ((block.attention.value, 0.02), (block.attention.output, 0.02 / 4)):
            assert part.weight.std().item() == pytest.approx(std * 0.88, rel=0.05)  # cut at two deviations
        assert block.feed_forward.down.weight.std().item() == pytest.approx(0.02 / 4 * 0.88, rel=0.05)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_a_folder_written_for_it_with_its_class(tied, tmp_path):
    model = build("gpt2", small_config("gpt2", tie_word_embeddings=tied), "causal-lm", dtype=torch.float32)
    zoo.save(model, tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-gpt2")
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    again = zoo.load(tmp_path / "theirs", task="causal-lm")
    assert not again.load_report.random
    with torch.no_grad():
        mine = model(IDS).logits
        assert torch.equal(again(IDS).logits, mine)
        assert relative(theirs(IDS).logits, mine) < 1e-5


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_folder_of_ranks_is_one_model(ranks, tmp_path):
    """Cut as Megatron cuts it: the rows of the table and of what enters a sublayer, query, key and value each, and the
    columns of what leaves it.
    """
    model = build("gpt2", small_config("gpt2", vocab_size=20, intermediate_size=32, num_heads=4), "causal-lm", seed=6)
    whole = _megatron(model)
    for rank in range(ranks):
        torch.save(
            {"module": {name: _cut(name, x, rank, ranks).half() for name, x in whole.items()}, "iteration": 1},
            tmp_path / f"mp_rank_{rank:02d}_model_states.pt",
        )
    config = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 4, "vocab_size": 20, "max_sequence_length": 10}
    loaded = zoo.load(tmp_path, config=config, task="causal-lm")
    assert loaded.load_report.layout == ("megatron-gpt2" if ranks == 1 else "megatron-gpt2-ranks")
    assert loaded.dtype == torch.float16
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].half()), name


def _megatron(model):
    part = {
        "attention": "attention",
        "attention_norm": "input_layernorm",
        "feed_forward_norm": "post_attention_layernorm",
    }
    names = {
        "embeddings.token.weight": "word_embeddings.weight",
        "embeddings.position.weight": "position_embeddings.weight",
    }
    bare, found = model.model.state_dict(), {}
    for name, tensor in bare.items():
        if name in names:
            found[names[name]] = tensor
        elif name.startswith("norm."):
            found[f"transformer.final_layer{name}"] = tensor
    for i in range(model.config.num_layers):
        ours, theirs = f"encoder.blocks.{i}.", f"transformer.layers.{i}."
        for kind in ("weight", "bias"):
            for own, other in list(part.items())[1:]:
                found[f"{theirs}{other}.{kind}"] = bare[f"{ours}{own}.{kind}"]
            found[f"{theirs}attention.query_key_value.{kind}"] = torch.cat(
                [bare[f"{ours}attention.{x}.{kind}"] for x in ("query", "key", "value")]
            )
            found[f"{theirs}attention.dense.{kind}"] = bare[f"{ours}attention.output.{kind}"]
            found[f"{theirs}mlp.dense_h_to_4h.{kind}"] = bare[f"{ours}feed_forward.up.{kind}"]
            found[f"{theirs}mlp.dense_4h_to_h.{kind}"] = bare[f"{ours}feed_forward.down.{kind}"]
    return found


def _cut(name, tensor, rank, ranks):
    if "query_key_value" in name:
        return torch.cat([part.chunk(ranks)[rank] for part in tensor.chunk(3)])
    if name.startswith("word_embeddings") or "dense_h_to_4h" in name:
        return tensor.chunk(ranks)[rank].clone()
    if name.endswith(("dense.weight", "dense_4h_to_h.weight")):
        return tensor.chunk(ranks, 1)[rank].clone()
    return tensor


def test_the_two_ranks_of_the_golden_case_come_back_from_ours():
    (folder,) = golden_cases("cpm/two-rank-checkpoint")
    case = load_case(folder)
    model = zoo.load(case.weights, config=case.config)
    ours = dict(model.state_dict())
    theirs = layouts.load("megatron-gpt2-ranks").back(ours, model.config.to_dict()).run(ours.__getitem__)
    assert theirs.keys() == case.weights.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in case.weights.items())
