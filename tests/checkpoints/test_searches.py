"""The settings that a model writes with go with it: through saving, loading and converting, and by a name."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import zoo
from zoo.checkpoints.binding import damage
from zoo.errors import CheckpointError, UnknownNameError, ZooWarning

FILE = "generation_config.json"
SIZES = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "num_layers": 1, "vocab_size": 20}
SIZES |= {"decoder_num_layers": 1, "decoder_num_heads": 2, "decoder_intermediate_size": 16, "max_positions": 16}
BEAMS = zoo.Search(num_beams=4, length_penalty=2.0, max_length=6, forced_bos_token_id=0, end_token_id=2)


def bart():
    return zoo.create("bart-base", task="conditional-generation", **SIZES)


@pytest.mark.parametrize(
    "search",
    [
        BEAMS,
        zoo.Search(do_sample=True, top_k=5, temperature=0.5, max_new_tokens=4, end_token_id=(2, 3)),
        zoo.Search(do_sample=True, num_return_sequences=3),
        zoo.Search(num_beams=3, penalty="google", length_penalty=0.3, late_endings=True, early_stopping="never"),
        zoo.Search(bad_words_ids=((4, 5), (6,)), vocabulary=(2, 7), stop=("end",), use_cache=False, min_new_tokens=2),
    ],
)
def test_what_is_written_is_what_is_read(search, tmp_path):
    search.write(tmp_path)
    assert zoo.Search.read(tmp_path) == search


def test_transformers_reads_the_file_as_it_reads_its_own(tmp_path):
    BEAMS.replace(penalty="google", length_penalty=2.0).write(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    found = {name: getattr(theirs, name) for name in ("num_beams", "length_penalty", "max_length", "eos_token_id")}
    assert found == {"num_beams": 4, "length_penalty": 2.0, "max_length": 6, "eos_token_id": 2}
    theirs.save_pretrained(tmp_path / "again")
    assert zoo.Search.read(tmp_path / "again") == BEAMS.replace(penalty="google", length_penalty=2.0)


def test_a_file_with_both_lengths_means_the_new_tokens_as_in_transformers(tmp_path):
    (tmp_path / FILE).write_text('{"max_length": 20, "max_new_tokens": 5}')
    assert zoo.Search.read(tmp_path) == zoo.Search(max_new_tokens=5)


def test_they_are_saved_with_the_model_and_loaded_with_it(tmp_path):
    model = bart()
    zoo.save(model, tmp_path / "none")
    assert not (tmp_path / "none" / FILE).exists()
    model.search = BEAMS
    zoo.save(model, tmp_path / "one")
    loaded = zoo.load(tmp_path / "one")
    assert loaded.search == BEAMS
    zoo.save(loaded, tmp_path / "two")  # untouched, it goes on
    assert zoo.load(tmp_path / "two").search == BEAMS
    assert damage(tmp_path / "two") == []
    loaded.search = zoo.Search()
    zoo.save(loaded, tmp_path / "two")  # the plain ones replace those that are there
    assert zoo.load(tmp_path / "two").search == zoo.Search()


def test_functions_are_left_out_with_a_warning(tmp_path):
    model = bart()
    model.search = BEAMS.replace(processors=(lambda ids, scores: scores,), penalty=lambda total, length, weight: total)
    with pytest.warns(ZooWarning, match="penalty, processors of the search can't be written"):
        zoo.save(model, tmp_path)
    assert zoo.load(tmp_path).search == BEAMS


def test_a_search_that_can_not_be_read_any_more_does_not_stand_in_the_way_of_saving(tmp_path):
    zoo.save(bart(), tmp_path / "one")
    (tmp_path / "one" / FILE).write_text("[1]")
    loaded = zoo.load(tmp_path / "one")
    with pytest.raises(CheckpointError, match="must hold a JSON object, got list"):
        _ = loaded.search
    with pytest.warns(ZooWarning, match="settings that the model writes with are not saved"):
        zoo.save(loaded, tmp_path / "two")
    assert (tmp_path / "two" / "model.safetensors").exists()
    (tmp_path / "one" / FILE).write_text('{"zoo": {"penaltie": "google"}}')
    with pytest.raises(UnknownNameError, match="did you mean 'penalty'"):
        zoo.Search.read(tmp_path / "one")


def foreign(folder):
    """A model of transformers with the settings that its authors used."""
    config = transformers.BartConfig(
        vocab_size=20, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=16,
    )  # fmt: skip
    theirs = transformers.BartForConditionalGeneration(config)
    theirs.generation_config.update(num_beams=4, length_penalty=2.0, max_length=6)
    theirs.save_pretrained(folder)
    return theirs.eval()


def test_they_go_through_conversion_both_ways(tmp_path):
    theirs = foreign(tmp_path / "theirs")
    zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    ours = zoo.load(tmp_path / "ours", task="conditional-generation")
    assert (ours.search.num_beams, ours.search.length_penalty, ours.search.max_length) == (4, 2.0, 6)
    source = torch.tensor([[0, 5, 6, 7, 2]])
    wanted = theirs.generate(source)
    assert zoo.generate(ours, source).sequences.tolist() == wanted.tolist()
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="hf-bart")
    again = transformers.BartForConditionalGeneration.from_pretrained(tmp_path / "back").eval()
    assert again.generate(source).tolist() == wanted.tolist()
    assert again.generation_config.num_beams == 4


def test_older_folders_keep_them_in_their_config(tmp_path):
    foreign(tmp_path / "theirs")
    (tmp_path / "theirs" / FILE).unlink()
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({**config, "num_beams": 3}))
    zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    assert zoo.load(tmp_path / "ours", task="conditional-generation").search.num_beams == 3


def test_a_registered_name_has_those_of_its_checkpoint_and_never_those_of_the_current_folder(tmp_path, monkeypatch):
    from zoo.checkpoints import searches

    (tmp_path / "here").mkdir()
    (tmp_path / "here" / FILE).write_text('{"num_beams": 9}')
    (tmp_path / "fetched").mkdir()
    BEAMS.write(tmp_path / "fetched")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(searches, "locate", {"bart-large.cnn": (tmp_path / "fetched", None)}.__getitem__)
    assert searches.find_search("bart-large.cnn") == BEAMS
