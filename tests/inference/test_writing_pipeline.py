"""From texts to texts: the pipeline that writes, its languages, and the commands on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from typer.testing import CliRunner

import zoo
from zoo.cli.app import app
from zoo.errors import InputError, TaskError, UnknownNameError

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *["the", "cat", "dog", "sat", "ran", "on", "mat", "a", "house", "red"]]
CODES = ["de_DE", "en_XX", "fr_XX"]
SIZES = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "num_layers": 2, "vocab_size": 20}
SIZES |= {"decoder_num_layers": 1, "decoder_num_heads": 2, "decoder_intermediate_size": 16, "max_positions": 16}


def backend(languages: bool) -> Any:
    found = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    codes = CODES if languages else []
    found.add_special_tokens([AddedToken(word, special=True) for word in (*WORDS[:4], *codes)])
    frame = "$A </s> en_XX" if languages else "<s> $A </s>"
    special = [(word, found.token_to_id(word)) for word in ("<s>", "</s>", *(["en_XX"] if languages else []))]
    found.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return found


def made(folder: Path, name: str, *, languages: bool = False, **fields: Any) -> Path:
    """A small model with random weights and its tokenizer, saved."""
    torch.manual_seed(0)
    model = zoo.create(name, task="conditional-generation", **{**SIZES, **fields}).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))
    zoo.save(model, folder)
    backend(languages).save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def bart(tmp_path_factory) -> Path:
    return made(tmp_path_factory.mktemp("bart"), "bart-base")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_texts_become_texts_in_their_order_with_scores(bart):
    pipeline = zoo.pipeline("conditional-generation", str(bart), num_beams=3, num_return_sequences=2, max_length=8)
    rows = ["the cat sat", "a red house", "the dog ran on a mat"]
    together = pipeline(rows)
    for row, found in zip(rows, together, strict=True):
        assert found["text"] == found["texts"][0]
        assert found["scores"] == sorted(found["scores"], reverse=True)
        alone = pipeline(row)
        assert alone["texts"] == found["texts"]
        assert not set(found["text"].split()) & {"<s>", "</s>", "<pad>"}


def test_settings_beside_the_weights_are_used_and_changed_by_name(bart, tmp_path):
    for file in bart.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text('{"num_beams": 4, "length_penalty": 2.0, "max_length": 6}')
    assert zoo.pipeline("conditional-generation", str(tmp_path)).search == zoo.Search(
        num_beams=4, length_penalty=2.0, max_length=6
    )
    assert zoo.pipeline("conditional-generation", str(tmp_path), num_beams=1).search == zoo.Search(max_length=6)
    model = zoo.load(tmp_path, task="conditional-generation")
    ids = torch.tensor([[0, 5, 6, 2]])
    wanted = zoo.generate(model, ids, search=zoo.Search(num_beams=4, length_penalty=2.0, max_length=6))
    assert torch.equal(zoo.generate(model, ids).sequences, wanted.sequences)


def test_a_stop_string_ends_a_text_and_is_cut_off(bart):
    free = zoo.pipeline("conditional-generation", str(bart), max_length=12, suppress_tokens=[2, 0, 1])
    text = free("the cat sat")["text"]
    word = text.split()[2]
    stopped = zoo.pipeline(
        "conditional-generation", str(bart), max_length=12, suppress_tokens=[2, 0, 1], stop=[f" {word}"]
    )
    assert stopped("the cat sat")["text"] == text[: text.index(f" {word}")]


def test_sources_that_are_too_long_or_empty_are_refused(bart):
    pipeline = zoo.pipeline("conditional-generation", str(bart), max_length=5)
    with pytest.raises(InputError, match="the model reads 16"):
        pipeline("the cat " * 9)
    with pytest.raises(InputError, match="is empty"):
        pipeline("  ")
    cut = zoo.pipeline("conditional-generation", str(bart), max_length=5, cut=True)
    if cut.tokenizer.max_length:
        assert cut("the cat " * 9)["text"] is not None
    with pytest.raises(UnknownNameError, match="num_beams"):
        zoo.pipeline("conditional-generation", str(bart), num_beam=2)
    with pytest.raises(TaskError, match="Bart has no language codes"):
        zoo.pipeline("conditional-generation", str(bart), to="de_DE")


@pytest.mark.parametrize("fifty", [False, True])
def test_mbart_begins_or_forces_the_language_it_writes_in(tmp_path, fifty):
    fields = {"start_token_id": 2} if fifty else {}
    folder = made(tmp_path, "mbart-large-cc25", languages=True, **fields)
    pipeline = zoo.pipeline("conditional-generation", str(folder), language="fr_XX", to="de_DE", max_length=6)
    german = pipeline.tokenizer.token_to_id("de_DE")
    if fifty:
        assert pipeline.search.forced_bos_token_id == german
    else:
        assert pipeline.named["start_ids"].tolist() == [[german]]
    assert len(pipeline(["the cat", "a dog sat on"])) == 2
    with pytest.raises(UnknownNameError, match="de_DE"):
        zoo.pipeline("conditional-generation", str(folder), to="de_DD")
    if not fifty:
        with pytest.raises(InputError, match="say the language"):
            zoo.pipeline("conditional-generation", str(folder))
    done = run("translate", "the cat sat", "--to", "de_DE", "--from", "en_XX", "--model", str(folder), "--json")
    assert done.exit_code == 0
    assert set(json.loads(done.stdout)[0]) == {"text", "written", "score"}


def test_commands_write_to_the_terminal_to_files_and_word_by_word(bart, tmp_path):
    told = zoo.pipeline("conditional-generation", str(bart), num_beams=2, num_return_sequences=2, max_new_tokens=5)
    found = json.loads(
        run(
            "write", "the cat", "--model", str(bart), "--beams", "2", "-n", "2", "--max-new-tokens", "5", "--json"
        ).stdout
    )
    assert found[0]["texts"] == told("the cat")["texts"]
    source, out = tmp_path / "in.txt", tmp_path / "out.jsonl"
    source.write_text("the cat\na dog\n")
    done = run("write", str(source), "--model", str(bart), "--max-new-tokens", "5", "--out", str(out))
    assert done.exit_code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    greedy = zoo.pipeline("conditional-generation", str(bart), max_new_tokens=5)
    assert [row["written"] for row in rows] == [greedy(text)["text"] for text in ("the cat", "a dog")]
    streamed = run("write", "the cat", "--model", str(bart), "--max-new-tokens", "5", "--stream")
    assert streamed.stdout.strip() == greedy("the cat")["text"]
    drawn = [run("write", "the cat", "--model", str(bart), "--sample", "--seed", "3", "--json").stdout for _ in "ab"]
    assert drawn[0] == drawn[1]
    with pytest.raises(InputError, match="one text"):
        run("write", "the cat", "a dog", "--model", str(bart), "--stream")


def test_models_that_do_not_write_are_refused_by_their_task(tmp_path):
    small = {"hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "num_layers": 1, "vocab_size": 20}
    zoo.save(zoo.create("oscar-base", task="masked-lm", **small), tmp_path)
    for task in ("conditional-generation", "causal-lm"):
        with pytest.raises(TaskError, match=f"'{task}' does not fit"):
            zoo.load(tmp_path, task=task)


def test_a_model_that_captions_nothing_is_refused_before_its_regions_are_made(bart):
    with pytest.raises(TaskError, match="'masked-lm' does not fit"):
        zoo.pipeline("image-captioning", str(bart), detector="patch-grid")
    model = zoo.load(bart, task="conditional-generation")
    with pytest.raises(TaskError, match="writes no captions from pictures alone; take a VLP or a UNIMO"):
        zoo.pipeline("image-captioning", model, tokenizer=zoo.tokenizer(bart), detector="patch-grid")


def test_a_tokenizer_without_codes_is_named_where_a_language_is_asked_for(tmp_path):
    folder = made(tmp_path, "mbart-large-cc25")
    with pytest.raises(TaskError, match="the tokenizer of this Mbart has no language codes"):
        zoo.pipeline("conditional-generation", str(folder), language="en_XX", to="de_DE")


def test_commands_name_an_empty_row_and_refuse_a_folder(bart, tmp_path):
    (tmp_path / "in.txt").write_text("the cat\n\na dog\n")
    with pytest.raises(InputError, match="row 2: a source is empty"):
        run("write", str(tmp_path / "in.txt"), "--model", str(bart), "--json")
    with pytest.raises(InputError, match="is a folder; this command takes texts"):
        run("write", f"{tmp_path}/", "--model", str(bart))
    with pytest.raises(UnknownNameError, match=f"is a folder, not a registered name; use zoo inspect {bart}"):
        run("info", str(bart))
