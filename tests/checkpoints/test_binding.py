"""The files of a folder belong together: no two saves are mixed in silence, and no edit is believed
over what the weights say.
"""

from __future__ import annotations

import json
import shutil
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.kills import IDS, SIZES, deaths, output, tiny, words, writers
from zoo import tokenization
from zoo.checkpoints import checkpoint
from zoo.checkpoints.adapters.files import load_adapter, save_adapter
from zoo.checkpoints.binding import Binding
from zoo.errors import CheckpointError
from zoo.formats.disk import begin, clear_leftovers, settled, workspace
from zoo.formats.writer import write_tensors

SAVED = Path(__file__).parents[1] / "fixtures" / "saved-by-0.1"


def edit(file: Path, *path: Any, to: Any) -> None:
    """Set one value of a JSON file by hand."""
    whole = json.loads(file.read_text())
    *way, last = path
    value = whole
    for key in way:
        value = value[key]
    if to is None:
        del value[last]
    else:
        value[last] = to
    file.write_text(json.dumps(whole))


@pytest.fixture
def two(tmp_path) -> tuple[Path, Path]:
    """The folders of two models that differ in numbers, heads and activation, and share all sizes."""
    return zoo.save(tiny(0), tmp_path / "zero"), zoo.save(tiny(1), tmp_path / "one")


# --- what each says of the other


def test_a_saved_folder_says_in_both_files_which_save_it_is_of(two):
    config = json.loads((two[0] / "config.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = zoo.load(two[0])
    assert model.load_report.notes == ()
    found = zoo.verify(two[0])
    assert (found.ok, found.results[0].passed, found.last_passed) == (True, True, "binding")
    assert config["zoo_format"] == 2
    assert config["binding"]["content_sha256"][:16] in found.results[0].why
    again = zoo.save(model, two[0].parent / "again")
    assert (again / "model.safetensors").read_bytes() == (two[0] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_of_another_save_does_not_count_over_what_the_weights_say(two, file, tmp_path):
    shutil.copytree(two[0], tmp_path / "mixed")
    shutil.copy(two[1] / file, tmp_path / "mixed")
    model = zoo.load(tmp_path / "mixed")
    assert torch.equal(output(model), output(zoo.load(two[1 if file == "model.safetensors" else 0])))
    assert "of another save" in model.load_report.notes[0]
    assert zoo.verify(tmp_path / "mixed").failed.name == "binding"


def test_weights_without_their_config_tell_what_they_are(two):
    (two[0] / "config.json").unlink()
    model = zoo.load(two[0])
    assert torch.equal(output(model), output(tiny(0)))
    assert "missing" in model.load_report.notes[0]


def test_a_file_by_itself_counts_over_the_config_of_another_beside_it(two):
    shutil.copy(two[1] / "model.safetensors", two[0] / "other.safetensors")
    model = zoo.load(two[0] / "other.safetensors")
    assert torch.equal(output(model), output(tiny(1)))
    assert model.load_report.notes == ()


def test_weights_that_another_program_wrote_are_told_of_and_compared_by_verify(two):
    tensors = load_file(two[0] / "model.safetensors")
    save_file(tensors, two[0] / "model.safetensors", {"format": "pt"})
    assert "not written by the zoo" in zoo.load(two[0]).load_report.notes[0]
    assert zoo.verify(two[0]).ok
    save_file(load_file(two[1] / "model.safetensors"), two[0] / "model.safetensors", {"format": "pt"})
    assert zoo.verify(two[0]).failed.name == "binding"


def test_a_header_that_was_changed_is_refused(two):
    file = two[0] / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'\\"relu\\"', b'\\"gelu\\"'))
    with pytest.raises(CheckpointError, match="not the one that it was written with"):
        zoo.load(two[0])


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_header_that_names_files_outside_of_its_folder_is_refused(name, two, tmp_path):
    (tmp_path / "outside").write_text("mine")
    binding = Binding({"zoo_format": 2}, files={name: "0" * 64})
    write_tensors(two[0] / "model.safetensors", load_file(two[0] / "model.safetensors"), {}, seal=binding.header)
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        zoo.load(two[0])
    zoo.convert(two[1], two[0], to="hf-bert")  # which removes what the old header lists
    assert (tmp_path / "outside").read_text() == "mine"


def test_inspect_says_what_a_torn_or_edited_folder_is(two):
    assert zoo.inspect(two[0])["notes"] == []
    edit(two[0] / "config.json", "config", "num_heads", to=2)
    assert "num_heads is 2" in zoo.inspect(two[0])["why"]
    shutil.copy(two[1] / "model.safetensors", two[0])
    assert "of another save" in zoo.inspect(two[0])["notes"][0]


def test_shards_of_two_saves_are_refused(tmp_path):
    folders = [zoo.save(tiny(seed), tmp_path / str(seed), shard_size=1500) for seed in (0, 1)]
    first, other = (sorted(folder.glob("model-*")) for folder in folders)
    assert len(first) == len(other) > 1
    assert not {file.name for file in first} & {file.name for file in other}
    shutil.copy(other[0], first[0])
    with pytest.raises(CheckpointError, match="are of two saves"):
        zoo.load(folders[0])


def test_verify_finds_a_flipped_bit_and_another_tokenizer(tmp_path):
    folder = zoo.save(tiny(0), tmp_path / "saved", words("a", "b"))
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    assert zoo.verify(folder).failed.name == "hash"
    zoo.save(tiny(0), folder, words("a", "b"))
    assert zoo.verify(folder).ok
    words("b", "a").save(folder)
    assert "tokenizer.json" in zoo.verify(folder).failed.why
    with pytest.warns(UserWarning, match="tokenizer.json has sha256"):
        assert zoo.tokenizer(folder).encode("b").ids == [2]


def test_a_tokenizer_of_another_save_is_refused(tmp_path):
    old = zoo.save(tiny(0), tmp_path / "old", words("a", "b"))
    new = zoo.save(tiny(1), tmp_path / "new", words("b", "a"))
    shutil.copy(new / "model.safetensors", old)
    with pytest.raises(CheckpointError, match=r"tokenizer.json.*is of another save"):
        zoo.tokenizer(old)
    assert zoo.tokenizer(old / "tokenizer.json").encode("a").ids == [2]
    for name in ("tokenizer.json", "zoo_tokenizer.json"):
        shutil.copy(new / name, old)
    assert zoo.tokenizer(old).encode("a").ids == [3]


def test_a_save_without_a_tokenizer_keeps_the_one_that_is_there(tmp_path):
    folder = zoo.save(tiny(0), tmp_path / "saved", words("a", "b"))
    zoo.save(tiny(1), folder)
    assert zoo.tokenizer(folder).encode("b").ids == [3]


def test_a_conversion_over_another_leaves_no_tokenizer_and_no_modules_of_the_old_one(tmp_path):
    encoder = zoo.create("bert-tiny", task="sentence-embedding", hidden_size=8, num_heads=2, vocab_size=20)
    zoo.save(encoder, tmp_path / "with", words("a"))
    zoo.save(tiny(1), tmp_path / "without")
    zoo.convert(tmp_path / "with", tmp_path / "out", to="hf-bert")
    assert (tmp_path / "out" / "modules.json").is_file()
    zoo.convert(tmp_path / "without", tmp_path / "out", to="hf-bert")
    zoo.convert(tmp_path / "without", tmp_path / "alone", to="hf-bert")
    assert sorted(f.name for f in (tmp_path / "out").rglob("*") if f.is_file()) == ["config.json", "model.safetensors"]


# --- an edited description


def techniques() -> Any:
    model = tiny(1)
    zoo.apply(model, zoo.StridedAttention(stride=2))
    return zoo.apply(model, zoo.LoRA(rank=2, alpha=1))


EDITS = {
    "heads": (("config", "num_heads"), 4, r"config.num_heads is 4, the weights were written with 2"),
    "activation": (("config", "activation"), "relu", r"config.activation is 'relu'.*with 'gelu'"),
    "eps": (("config", "norm_eps"), 1e-5, r"config.norm_eps"),
    "pooler": (("config", "pooler"), False, r"config.pooler is False, the weights were written with True"),
    "alpha": (("techniques", 1, "alpha"), 8, r"techniques.1.alpha is 8, the weights were written with 1"),
    "a weightless technique": (("techniques", 0), None, r"techniques.0"),
    "all techniques": (("techniques",), None, r"techniques is not there"),
    "variant": (("model",), "bert-base", r"model is 'bert-base'"),
}


@pytest.mark.parametrize("kind", EDITS)
@pytest.mark.parametrize("shard_size", [None, 1500])
def test_an_edit_that_a_number_depends_on_is_refused(kind, shard_size, tmp_path):
    folder = zoo.save(techniques(), tmp_path / "saved", shard_size=shard_size)
    path, value, says = EDITS[kind]
    edit(folder / "config.json", *path, to=value)
    for way in (zoo.load, zoo.verify, lambda folder: zoo.convert(folder, tmp_path / "out", to="hf-bert")):
        with pytest.raises(CheckpointError, match=f"was edited.*{says}"):
            way(folder)


def test_an_edit_is_taken_where_the_user_says_so(two):
    edit(two[1] / "config.json", "config", "num_heads", to=4)
    model = zoo.load(two[1], config=two[1] / "config.json")
    assert model.config.num_heads == 4
    assert "the config given counts" in model.load_report.notes[0]
    zoo.save(model, two[1])
    assert zoo.load(two[1]).load_report.notes == ()
    assert not torch.equal(output(zoo.load(two[1])), output(tiny(1)))


def test_an_edit_that_no_number_depends_on_is_taken_and_told(tmp_path):
    model = zoo.create("bert-tiny", task="sequence-classification", labels=["no", "yes"], hidden_size=8, num_heads=2)
    folder = zoo.save(model, tmp_path / "saved")
    edit(folder / "config.json", "config", "dropout", to=0.3)
    edit(folder / "config.json", "options", "labels", to=["bad", "good"])
    found = zoo.load(folder)
    assert (found.model.config.dropout, found.options["labels"]) == (0.3, ["bad", "good"])
    assert [note.split(":")[0] for note in found.load_report.notes] == ["config.json was edited"] * 2
    assert zoo.verify(folder).ok


def test_a_config_for_another_library_is_held_against_the_tensors_too(two, tmp_path):
    theirs = [tmp_path / "theirs-0", tmp_path / "theirs-1"]
    for ours, folder in zip(two, theirs, strict=True):
        zoo.convert(ours, folder, to="hf-bert")
        assert zoo.load(folder).load_report.notes == ()
        assert zoo.verify(folder).last_passed == "binding"
    file = theirs[1] / "config.json"
    whole = file.read_text()
    edit(file, "num_attention_heads", to=4)
    with pytest.raises(CheckpointError, match=r"was edited.*num_heads is 4.*with 2"):
        zoo.load(theirs[1])
    assert zoo.load(theirs[1], config=file).config.num_heads == 4
    file.write_text(whole)
    edit(file, "hidden_dropout_prob", to=0.3)
    edit(file, "transformers_version", to="9")
    assert zoo.load(theirs[1]).config.dropout == 0.3
    shutil.copy(theirs[0] / "config.json", file)
    mixed = zoo.load(theirs[1])
    assert torch.equal(output(mixed), output(tiny(1)))
    assert "of another save" in mixed.load_report.notes[0]
    edit(file, "zoo_generation", to=None)  # as an older zoo wrote it
    with pytest.raises(CheckpointError, match="was edited, or is of another save"):
        zoo.load(theirs[1])


@pytest.mark.parametrize("library", ["zoo", "peft", "adapters"])
def test_an_adapters_config_is_held_against_its_tensors(library, tmp_path):
    base, scales = tiny(1), {"a": 1, "b": 8}
    for name, alpha in scales.items():
        save_adapter(zoo.apply(tiny(1), zoo.LoRA(rank=2, alpha=alpha)), tmp_path / name, library=library)
    file = "adapter.json" if library == "zoo" else "adapter_config.json"
    shutil.copytree(tmp_path / "a", tmp_path / "mixed")
    shutil.copy(tmp_path / "b" / file, tmp_path / "mixed")
    if library == "zoo":
        with pytest.warns(UserWarning, match="of another save"):
            assert load_adapter(base, tmp_path / "mixed").techniques[0].alpha == 1
        edit(tmp_path / "a" / file, "techniques", 0, "alpha", to=8)
        shutil.copy(tmp_path / "a" / file, tmp_path / "mixed")
    with pytest.raises(CheckpointError, match=r"was edited.*alpha is 8, the weights were written with 1"):
        load_adapter(tiny(1), tmp_path / "mixed")
    taken = load_adapter(tiny(1), tmp_path / "mixed", tmp_path / "mixed" / file)
    assert taken.techniques[0].alpha == 8


def test_a_folder_holds_one_adapter(tmp_path):
    model = zoo.apply(tiny(1), zoo.LoRA(rank=2, alpha=3))
    for library in ("zoo", "peft", "adapters", "zoo", "adapters", "peft"):
        save_adapter(model, tmp_path / "adapter", library=library)
        save_adapter(model, tmp_path / "alone" / library, library=library)
        names = [sorted(f.name for f in (tmp_path / p).iterdir()) for p in ("adapter", f"alone/{library}")]
        assert names[0] == names[1]
        assert load_adapter(tiny(1), tmp_path / "adapter").techniques[0].alpha == 3


# --- folders of an older zoo


def test_an_older_folder_loads_with_a_note_that_nothing_binds_it_and_verify_repeats_it(tmp_path):
    model = zoo.load(SAVED / "bert")
    assert ["an older zoo" in note for note in model.load_report.notes] == [True]
    assert "an older zoo" in next(check.why for check in zoo.verify(SAVED / "bert").results if check.name == "binding")
    with pytest.warns(UserWarning, match="an older zoo"):
        load_adapter(zoo.load(SAVED / "plain"), SAVED / "adapter")
    shutil.copytree(SAVED / "bert", tmp_path / "edited")
    edit(tmp_path / "edited" / "config.json", "config", "activation", to="relu")
    with pytest.raises(CheckpointError, match=r"was edited.*config.activation"):
        zoo.load(tmp_path / "edited")
    shutil.copytree(SAVED / "bert", tmp_path / "over")
    zoo.save(model, tmp_path / "over")
    assert zoo.load(tmp_path / "over").load_report.notes == ()


# --- writers that die, and readers beside them


@pytest.fixture(scope="module")
def ways(tmp_path_factory) -> Any:
    return writers(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    "kind", ["save in one file and in shards", "convert a sentence encoder to", "save_adapter peft"]
)
def test_a_kill_at_any_move_leaves_the_old_or_the_new_or_a_refusal(kind, ways, tmp_path):
    found = [what for _, what in deaths(ways[kind](tmp_path / "kills"), moves=True)]
    assert found[0] == "0"
    assert found[-1] == "1"
    assert not [what for what in found if what == "MIXED"]
    assert all("of another save" in what for what in found if what.startswith("refused"))


def test_a_reader_beside_a_writer_gets_the_old_or_the_new(tmp_path):
    models, stop = [tiny(0), tiny(1)], threading.Event()
    wanted = [output(model) for model in models]
    zoo.save(models[0], tmp_path / "saved")

    def write() -> None:
        while not stop.is_set():
            for number in (1, 0):
                zoo.save(models[number], tmp_path / "saved", shard_size=(None, 1500)[number])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            got = output(zoo.load(tmp_path / "saved"))
            assert any(torch.equal(got, one) for one in wanted)
    finally:
        stop.set()
        writer.join()


def test_what_lies_beside_weights_is_of_their_save_though_it_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    folders = []
    for pooling, vocabulary in (("mean", ("a", "b")), ("cls", ("b", "a"))):
        torch.manual_seed(len(folders))
        model = zoo.create("bert-tiny", task="sentence-embedding", pooling=pooling, **SIZES, num_heads=2)
        folders.append(zoo.save(model, tmp_path / pooling, words(*vocabulary)))
    wanted = [zoo.load(folder) for folder in folders]
    calls = {"options": checkpoint.embedding_options, "tokenizer": tokenization.load_tokenizer}

    def meanwhile(what: str) -> Any:
        zoo.convert(folders[0], tmp_path / what, to="hf-bert")
        others = [folders[1]]

        def read(folder: Path, *more: Any) -> Any:
            if folder == tmp_path / what and others:
                zoo.convert(others.pop(), folder, to="hf-bert")
            return calls[what](folder, *more)

        return read

    monkeypatch.setattr(checkpoint, "embedding_options", meanwhile("options"))
    found = zoo.load(tmp_path / "options", task="sentence-embedding")
    assert (found.options["pooling"], found.load_report.notes) == ("cls", ())
    assert torch.equal(found(IDS).embedding, wanted[1](IDS).embedding)
    monkeypatch.setattr(tokenization, "load_tokenizer", meanwhile("tokenizer"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert zoo.tokenizer(tmp_path / "tokenizer").encode("a").ids == [3]


def test_what_is_replaced_while_it_is_read_is_read_again_and_what_stays_is_refused_at_once(tmp_path):
    tries: list[int] = []

    def read(torn: int) -> int:
        tries.append(torn)
        if len(tries) <= torn:
            (tmp_path / "config.json").write_text(str(len(tries)))
        if len(tries) <= torn or torn == 0:
            raise CheckpointError("torn")
        return len(tries)

    assert settled(lambda: read(3), tmp_path) == 4
    tries.clear()
    with pytest.raises(CheckpointError, match="torn"):
        settled(lambda: read(1000), tmp_path)
    assert 4 < len(tries) < 20
    tries.clear()
    with pytest.raises(CheckpointError, match="torn"):
        settled(lambda: read(0), tmp_path)
    assert len(tries) == 1


def test_what_is_being_written_is_no_leftover_and_what_nobody_holds_is(tmp_path):
    place = tmp_path / "model[1].safetensors"
    dead, folder = tmp_path / f".{place.name}.dead.incomplete", tmp_path / f".{place.name}.gone.incomplete"
    dead.write_bytes(b"half")
    (folder / "inner").mkdir(parents=True)
    alive, _descriptor = begin(place)
    assert (alive.exists(), dead.exists(), folder.exists()) == (True, False, False)
    with workspace(place) as busy:
        dead.write_bytes(b"half")
        clear_leftovers(place)
        assert (dead.exists(), busy.is_dir()) == (False, True)
    assert sorted(tmp_path.iterdir()) == [alive]
