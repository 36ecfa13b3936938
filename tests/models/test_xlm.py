"""What XLM has beyond BERT: languages, zeroed rows, causal and sinusoidal variants, and its
encoder-decoder.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import zoo
from tests.strategies import randomised
from zoo.errors import ConfigError, InputError, TaskError, UnknownNameError
from zoo.inference.generate import generate
from zoo.maps.value_forms import FORMS

SIZES = {"vocab_size": 30, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "max_positions": 12}
IDS = torch.tensor([[1, 9, 8, 7, 1], [1, 6, 1, 2, 2]])
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def tiny(name: str = "xlm-mlm-enfr-1024", **more: object) -> torch.nn.Module:
    return randomised(zoo.create(name, **{**SIZES, **more}), 1)


def test_languages_go_by_id_or_by_name_for_all_or_for_each():
    model = tiny()
    by_id = model(IDS, language_ids=torch.tensor([[1] * 5, [0] * 5])).last_hidden_state
    assert torch.equal(model(IDS, language_ids=["fr", "en"]).last_hidden_state, by_id)
    assert torch.equal(model(IDS, language_ids=[1, 0]).last_hidden_state, by_id)
    assert torch.equal(model(IDS, language_ids="fr").last_hidden_state[0], by_id[0])
    assert not torch.allclose(model(IDS, language_ids="en").last_hidden_state[0], by_id[0])


def test_a_missing_or_unknown_language_is_refused_with_the_list():
    model = tiny()
    with pytest.raises(InputError, match="0 en, 1 fr"):
        model(IDS)
    with pytest.raises(UnknownNameError, match="0 en, 1 fr"):
        model(IDS, language_ids="de")
    with pytest.raises(InputError, match=r"0\.\.1, got 2"):
        model(IDS, language_ids=torch.full_like(IDS, 2))
    with pytest.raises(InputError, match="each of the 2 texts, got 3"):
        model(IDS, language_ids=["en", "fr", "en"])
    with pytest.raises(InputError, match=r"\(2, 5\)"):
        model(IDS, language_ids=torch.tensor([0, 1]))


def test_a_model_without_a_language_table_says_that_it_ignores_languages():
    model = tiny("xlm-mlm-17-1280")
    assert model.embeddings.language is None
    with pytest.warns(UserWarning, match="ignored"):
        given = model(IDS, language_ids="nowhere").last_hidden_state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(IDS).last_hidden_state, given)


def test_names_must_match_the_number_of_languages():
    with pytest.raises(ConfigError, match="names 1 languages"):
        zoo.config("xlm-mlm-enfr-1024").replace(languages=("en",))


@pytest.mark.parametrize("packed", [True, False])
def test_rows_of_padding_are_zeros_at_every_depth_inside_the_model_too(packed):
    model = tiny()
    seen: list[Tensor] = []
    for block in model.encoder.blocks:
        block.register_forward_pre_hook(lambda _block, inputs: seen.append(inputs[0]))
    with zoo.packing(packed):
        states = model(IDS, REAL, language_ids="en", output_hidden_states=True).hidden_states
    assert len(states) == 3
    assert all(not state[1, 3:].any() and state[REAL.bool()].all(1).any() for state in states)
    assert all(x.shape == (8, 8) if packed else not x[1, 3:].any() for x in seen)


def test_a_causal_model_sees_nothing_to_the_right():
    model = tiny("xlm-clm-enfr-1024")
    changed = IDS.clone()
    changed[:, 3:] = 5
    states = [model(ids, language_ids="en").last_hidden_state for ids in (IDS, changed)]
    assert torch.equal(states[0][:, :3], states[1][:, :3])
    assert not torch.allclose(states[0][:, 3:], states[1][:, 3:])


def test_sinusoidal_positions_are_the_papers_and_are_stored_but_not_trained(tmp_path):
    model = zoo.create("xlm-mlm-en-2048", **SIZES, sinusoidal_positions=True)
    table = model.embeddings.position.weight
    for position in range(12):
        for column in range(8):
            angle = position / 10_000 ** (2 * (column // 2) / 8)
            assert float(table[position, column]) == pytest.approx(
                math.cos(angle) if column % 2 else math.sin(angle), abs=1e-6
            )
    assert "embeddings.position.weight" not in dict(model.named_parameters())
    table[3] = 7  # what a file holds is what is used
    zoo.save(model, tmp_path / "saved")
    assert torch.equal(zoo.load(tmp_path / "saved").embeddings.position.weight, table)


def test_an_original_file_brings_its_own_config(tmp_path):
    """The options lie in the file; a run on several GPUs puts ``module.`` before each name."""
    ours = tiny(max_positions=7)
    foreign = {
        "embeddings": ours.embeddings.token,
        "position_embeddings": ours.embeddings.position,
        "lang_embeddings": ours.embeddings.language,
        "layer_norm_emb": ours.embeddings.norm,
    }
    for i, block in enumerate(ours.encoder.blocks):
        attention = block.attention
        parts = {
            "q_lin": attention.query,
            "k_lin": attention.key,
            "v_lin": attention.value,
            "out_lin": attention.output,
        }
        foreign |= {f"attentions.{i}.{name}": part for name, part in parts.items()}
        foreign |= {f"layer_norm1.{i}": block.attention_norm, f"layer_norm2.{i}": block.feed_forward_norm}
        foreign |= {f"ffns.{i}.lin1": block.feed_forward.up, f"ffns.{i}.lin2": block.feed_forward.down}
    tensors = {
        f"module.{name}.{p}": tensor for name, part in foreign.items() for p, tensor in part.state_dict().items()
    }
    params = {
        "n_words": 30,
        "emb_dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "n_langs": 2,
        "dropout": 0.1,
        "gelu_activation": True,
    }
    params |= {
        "lang2id": {"fr": 1, "en": 0},
        "id2lang": {0: "en", 1: "fr"},
        "exp_name": "x",
        "bptt": 256,
        "fp16": True,
        "asm": False,
    }
    torch.save({"model": tensors, "params": params, "dico_id2word": {0: "<s>"}}, tmp_path / "mlm.pth")
    loaded = zoo.load(tmp_path / "mlm.pth")
    assert loaded.config.languages == ("en", "fr")
    assert loaded.config.max_positions == 7
    assert loaded.load_report.layout == "xlm-original"
    assert torch.equal(
        loaded(IDS, REAL, language_ids="fr").last_hidden_state, ours(IDS, REAL, language_ids="fr").last_hidden_state
    )


@pytest.mark.parametrize("value", [{"en": 0, "fr": 1}, {"0": "en", "1": "fr"}, {1: "fr", 0: "en"}])
def test_names_by_id_are_read_in_either_direction(value):
    form = FORMS["names-by-id"]
    assert form.forward(value, "lang2id") == ("en", "fr")
    assert form.back(("en", "fr")) == {"en": 0, "fr": 1}


@pytest.mark.parametrize("value", [{"en": 0, "fr": 2}, {"en": "x"}, ["en"]])
def test_names_by_id_with_gaps_are_refused(value):
    with pytest.raises(ConfigError, match="lang2id"):
        FORMS["names-by-id"].forward(value, "lang2id")


# -- the encoder-decoder -----------------------------------------------------------------------------------------------


def translator() -> torch.nn.Module:
    return tiny("xlm-translation-enfr-1024", task="conditional-generation")


def test_writing_is_choosing_the_likeliest_word_again_and_again():
    model = translator()
    found = generate(model, IDS, REAL, max_length=8, end_at_limit=True, language_ids="en", decoder_language_ids="fr")
    written = found.sequences
    for row in range(2):
        length = int(REAL[row].sum())
        so_far = [1]
        while len(so_far) < 8 and (len(so_far) == 1 or so_far[-1] != 1):
            scores = model(
                IDS[row : row + 1, :length],
                language_ids="en",
                decoder_input_ids=torch.tensor([so_far]),
                decoder_language_ids="fr",
            ).logits[0, -1]
            so_far.append(1 if len(so_far) == 7 else int(scores.argmax()))
        assert written[row].tolist() == so_far + [2] * (written.shape[1] - len(so_far))


@pytest.mark.parametrize("attentions", [True, False])
def test_padding_on_either_side_changes_no_word(attentions):
    model = translator()
    target = torch.tensor([[1, 5, 1, 2], [1, 5, 6, 7]])
    target_real = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    named = {"language_ids": "en", "decoder_language_ids": "fr", "output_attentions": attentions}
    both = model(IDS, REAL, decoder_input_ids=target, decoder_attention_mask=target_real, **named)
    alone = model(IDS[1:, :3], decoder_input_ids=target[1:], **named)
    first = model(IDS[:1], decoder_input_ids=target[:1, :3], **named)
    assert torch.allclose(both.logits[1:], alone.logits, atol=1e-5)
    assert torch.allclose(both.logits[:1, :3], first.logits, atol=1e-5)
    assert not both.logits[0, 3].any()
    if attentions:
        assert [tuple(x.shape) for x in both.encoded.cross_attentions] == [(2, 2, 4, 5)] * 2


def test_a_model_that_does_not_write_or_trains_is_refused():
    with pytest.raises(TaskError, match="conditional-generation"):
        generate(tiny(), IDS)
    with pytest.raises(InputError, match="training mode"):
        generate(translator().train(), IDS, language_ids="en", decoder_language_ids="fr")
    with pytest.raises(InputError, match="between 2"):
        generate(translator(), IDS, max_length=13, language_ids="en", decoder_language_ids="fr")
    with pytest.raises(TaskError, match="lacks text"):
        zoo.create("xlm-translation-enfr-1024", task="masked-lm", **SIZES)


def test_a_target_word_sees_nothing_to_its_right():
    model, target = translator(), torch.tensor([[1, 5, 6, 7], [1, 8, 9, 4]])
    changed = torch.cat([target[:, :2], target[:, 2:].flip(1)], 1)
    named = {"language_ids": "en", "decoder_language_ids": "fr"}
    one, other = (model(IDS, REAL, decoder_input_ids=ids, **named).logits for ids in (target, changed))
    assert torch.equal(one[:, :2], other[:, :2])
    assert not torch.allclose(one[:, 2:], other[:, 2:])


def test_a_saved_model_that_names_its_languages_goes_to_the_foreign_layout(tmp_path):
    fields = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_layers": 1,
        "num_heads": 2,
        "num_languages": 3,
        "languages": ("de", "en", "fr"),
    }
    zoo.save(zoo.create("xlm-mlm-tlm-xnli15-1024", **fields), tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-xlm")
    zoo.convert(tmp_path / "theirs", tmp_path / "again")
    assert zoo.load(tmp_path / "again").config.languages == ("de", "en", "fr")
