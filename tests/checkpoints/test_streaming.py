"""Conversion as a stream, both ways, and the checks of a file, each of which can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.layouts import ALBERT, BERT, CONFIGS, canonical, drawn, equal
from zoo.checkpoints import checks
from zoo.checkpoints.checks import verify
from zoo.checkpoints.opened import Opened
from zoo.checkpoints.streaming import Destination, convert, convert_back, read
from zoo.errors import CheckpointError, InputError, UnknownNameError
from zoo.formats.archive import dtype_name
from zoo.formats.memory import DictArchive
from zoo.formats.writer import write_tensors
from zoo.maps import layouts
from zoo.maps.parsing import parse_map

HEADS = {"bert": ("masked_lm", "next_sentence"), "albert": ("masked_lm", "sentence_order")}


class File(DictArchive):
    """A foreign file in memory that notes what is read from it."""

    def __init__(self, tensors, metadata=None):
        super().__init__(tensors, metadata, name="pytorch_model.bin")
        self.reads = []

    def read(self, name):
        self.reads.append(name)
        return super().read(name)

    def sha256(self):
        return DictArchive(self._tensors).sha256()  # beside the stream, so not noted


def foreign_file(family="bert", layout=None, ties=False, config=None, heads=None):
    """A file in a public layout, what should come out of it, its map and config."""
    keymap = layouts.load(layout or f"hf-{family}")
    config = dict(config or CONFIGS[family])
    ours = drawn(canonical(family, config, HEADS[family] if heads is None else heads))
    theirs = keymap.back(DictArchive(ours).tensors, config, ties=ties).run(ours.__getitem__)
    return {name: tensor.contiguous().clone() for name, tensor in theirs.items()}, ours, keymap, config


def loaded(opened, targets, **options):
    """The tensors in memory, and the checks."""
    return read(opened, opened.plan(targets), **options)


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


# --- forward ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "layout"), [("bert", "hf-bert"), ("albert", "hf-albert"), ("bert", "tf-bert"), ("albert", "tf-albert")]
)
def test_a_converted_file_holds_ours_and_says_where_it_came_from(tmp_path, family, layout):
    config = {**CONFIGS[family], "activation": "gelu_tanh"}
    theirs, ours, keymap, config = foreign_file(family, layout, config=config)
    archive = File(theirs)
    report = convert(
        Opened(archive, keymap, config, keymap.config_back(config)),
        archive_shapes(ours),
        Destination(tmp_path / "out.safetensors"),
    )
    assert equal(load_file(tmp_path / "out.safetensors"), ours)
    assert metadata_of(tmp_path / "out.safetensors") == {
        "format": "pt",
        "zoo.content_sha256": report.content_sha256,
        "zoo.layout": layout,
        "zoo.map_version": "1",
        "zoo.checked": "contract",
        "zoo.source": "pytorch_model.bin",
        "zoo.source_sha256": archive.sha256(),
    }
    assert report.checks.ok
    assert report.direction == "forward"
    assert report.tensors == len(ours)
    assert report.parameters == sum(tensor.numel() for tensor in ours.values())
    assert report.files == (tmp_path / "out.safetensors",)
    json.dumps(report.to_dict())


def archive_shapes(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


@pytest.mark.parametrize("shard_size", [None, 1500])
def test_converting_twice_gives_the_same_bytes(tmp_path, shard_size):
    theirs, ours, keymap, config = foreign_file(ties=True)
    for name in ("one", "two"):
        convert(
            Opened(File(theirs), keymap, config),
            archive_shapes(ours),
            Destination(tmp_path / name / "out.safetensors", shard_size=shard_size),
        )
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert (len(one) > 2) is (shard_size is not None)


def test_tensors_are_read_once_each_in_the_order_of_the_file(tmp_path):
    theirs, ours, keymap, config = foreign_file("albert", "tf-albert", config={**ALBERT, "activation": "gelu_tanh"})
    to = Destination(tmp_path / "out.safetensors")
    for run in (lambda opened, targets: convert(opened, targets, to), loaded):
        archive = File(dict(reversed(theirs.items())))
        run(Opened(archive, keymap, config), archive_shapes(ours))
        assert archive.reads == list(reversed(theirs))


def test_floats_are_written_in_the_dtype_asked_for(tmp_path):
    theirs, ours, keymap, config = foreign_file()
    convert(
        Opened(File(theirs), keymap, config),
        archive_shapes(ours),
        Destination(tmp_path / "out.safetensors", dtype="float16"),
    )
    assert equal(load_file(tmp_path / "out.safetensors"), {name: tensor.half() for name, tensor in ours.items()})


@pytest.mark.parametrize(
    ("word", "name"), [("bf16", "BF16"), (torch.float16, "F16"), ("torch.float32", "F32"), ("F64", "F64")]
)
def test_a_dtype_may_be_named_in_the_usual_ways(word, name):
    assert dtype_name(word) == name


@pytest.mark.parametrize("word", ["int8", "float31", torch.int64])
def test_a_dtype_that_is_no_float_is_refused(word):
    with pytest.raises(UnknownNameError, match="unknown dtype"):
        dtype_name(word)


def test_a_dry_run_reads_and_writes_nothing(tmp_path):
    theirs, ours, keymap, config = foreign_file()
    archive = File(theirs)
    report = convert(
        Opened(archive, keymap, config), archive_shapes(ours), Destination(tmp_path / "out.safetensors"), dry_run=True
    )
    assert archive.reads == []
    assert list(tmp_path.iterdir()) == []
    assert report.tensors == len(ours)
    assert report.checks.results[0].passed is None


def test_progress_counts_bytes_up_to_all_of_them(tmp_path):
    theirs, ours, keymap, config = foreign_file()
    calls = []
    convert(
        Opened(File(theirs), keymap, config),
        archive_shapes(ours),
        Destination(tmp_path / "x.safetensors", progress=lambda *done: calls.append(done)),
    )
    total = sum(tensor.numel() * 4 for tensor in ours.values())
    assert calls == sorted(calls)
    assert calls[-1] == (total, total)


def test_heads_nobody_asked_for_are_left_out_and_a_head_the_file_lacks_is_told(tmp_path):
    theirs, _, keymap, config = foreign_file()
    theirs["qa_outputs.weight"], theirs["qa_outputs.bias"] = torch.zeros(2, 8), torch.zeros(2)
    targets = canonical("bert", config, ("masked_lm", "sequence_classification"))
    opened, to = Opened(File(theirs), keymap, config), Destination(tmp_path / "out.safetensors")
    report = convert(opened, targets, to, heads=["masked_lm", "sequence_classification"])
    assert report.heads == ("masked_lm",)
    assert report.absent_heads == ("sequence_classification",)
    assert set(report.left_out) == {
        "qa_outputs.weight",
        "qa_outputs.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    }
    assert not any("next_sentence" in name for name in load_file(tmp_path / "out.safetensors"))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_source_that_is_not_finite_is_refused_by_name_and_nothing_is_left(tmp_path, bad):
    theirs, ours, keymap, config = foreign_file()
    theirs["bert.pooler.dense.bias"][3] = bad
    with pytest.raises(CheckpointError, match=r"'pooler\.dense\.bias' is not finite"):
        convert(
            Opened(File(theirs), keymap, config),
            archive_shapes(ours),
            Destination(tmp_path / "out.safetensors"),
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match=r"'pooler\.dense\.bias' is not finite"):
        loaded(Opened(File(theirs), keymap, config), archive_shapes(ours))


@pytest.mark.parametrize("copy", ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"])
def test_a_stored_copy_that_differs_is_refused_with_the_way_out(tmp_path, copy):
    theirs, ours, keymap, config = foreign_file(ties=True)
    theirs[copy].view(-1)[0] += 1e-6
    with pytest.raises(CheckpointError, match="tie_word_embeddings=false") as error:
        convert(
            Opened(File(theirs), keymap, config),
            archive_shapes(ours),
            Destination(tmp_path / "out.safetensors"),
        )
    assert copy in str(error.value)
    assert list(tmp_path.iterdir()) == []
    theirs[copy] = torch.zeros(3)
    with pytest.raises(CheckpointError, match="should be a copy"):
        loaded(Opened(File(theirs), keymap, config), archive_shapes(ours))


def test_a_copy_in_the_same_storage_is_not_read_again():
    theirs, ours, keymap, config = foreign_file(ties=True)
    theirs["cls.predictions.decoder.weight"] = theirs["bert.embeddings.word_embeddings.weight"]
    theirs["cls.predictions.decoder.bias"] = theirs["cls.predictions.bias"]
    archive = File(theirs)
    tensors, _ = loaded(Opened(archive, keymap, config), archive_shapes(ours))
    assert equal(tensors, ours)
    assert not any("decoder" in name for name in archive.reads)


def test_other_bytes_than_recorded_are_refused_and_nothing_is_left(tmp_path):
    theirs, ours, keymap, config = foreign_file()
    with pytest.raises(CheckpointError, match="recorded is 000"):
        convert(
            Opened(File(theirs), keymap, config, sha256="0" * 64),
            archive_shapes(ours),
            Destination(tmp_path / "out.safetensors"),
        )
    assert list(tmp_path.iterdir()) == []
    report = convert(
        Opened(File(theirs), keymap, config, sha256=File(theirs).sha256()),
        archive_shapes(ours),
        Destination(tmp_path / "out.safetensors"),
    )
    assert report.checks.results[0].passed is True


def test_a_config_that_contradicts_the_files_own_is_refused_unless_said_on_purpose(tmp_path):
    theirs, ours, keymap, config = foreign_file()
    foreign = {**keymap.config_back(config), "hidden_act": "gelu_new", "hidden_dropout_prob": 0.3}
    with pytest.raises(CheckpointError, match="activation='gelu_tanh', the model has 'gelu'"):
        loaded(Opened(File(theirs), keymap, config, foreign, ["dropout"]), archive_shapes(ours))
    loaded(
        Opened(File(theirs), keymap, {**config, "activation": "gelu_tanh"}, foreign, ["dropout"]), archive_shapes(ours)
    )


def test_a_way_back_that_is_not_open_is_told_and_does_not_stop_the_way_in():
    theirs, ours, keymap, config = foreign_file(layout="tf-bert", config={**BERT, "activation": "gelu_tanh"})
    tensors, report = loaded(Opened(File(theirs), keymap, {**config, "activation": "gelu"}), archive_shapes(ours))
    assert equal(tensors, ours)
    assert report.results[-1].passed is None
    assert "cannot say activation='gelu'" in report.results[-1].why


def test_loaded_tensors_are_contiguous_and_in_the_dtype_asked_for():
    theirs, ours, keymap, config = foreign_file(layout="tf-bert", config={**BERT, "activation": "gelu_tanh"})
    tensors, report = loaded(Opened(File(theirs), keymap, config), archive_shapes(ours), dtype=torch.bfloat16)
    assert equal(tensors, {name: tensor.bfloat16() for name, tensor in ours.items()})
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    assert report.ok


def test_a_dict_of_arrays_is_an_archive_and_of_other_things_is_not():
    assert DictArchive({"a": torch.zeros(2).numpy()}).tensors["a"].dtype == "F32"
    with pytest.raises(InputError, match="'a' is a str"):
        DictArchive({"a": "no tensor"})
    with pytest.raises(UnknownNameError, match="unknown tensor 'b'"):
        DictArchive({"a": torch.zeros(2)}).read("b")


# --- back -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("family", ["bert", "albert"])
def test_what_was_converted_comes_back_as_it_was(tmp_path, family, ties):
    theirs, ours, keymap, config = foreign_file(family, ties=ties)
    convert(
        Opened(File(theirs), keymap, config),
        archive_shapes(ours),
        Destination(tmp_path / "ours.safetensors"),
    )
    converted = File(load_file(tmp_path / "ours.safetensors"), metadata_of(tmp_path / "ours.safetensors"))
    report = convert_back(converted, keymap, config, Destination(tmp_path / "theirs"), ties=ties)
    assert equal(load_file(tmp_path / "theirs" / "model.safetensors"), theirs)
    foreign = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert foreign == report.foreign_config
    assert keymap.config_forward(foreign, theirs) == {
        **config,
        "classifier_dropout": foreign.get("classifier_dropout_prob"),
    }
    assert report.direction == "back"


@pytest.mark.parametrize("name", ["BertForPreTraining", "AlbertForPreTraining", "BertModel", "AlbertModel"])
def test_transformers_loads_what_the_way_back_wrote_with_no_key_missing_or_left(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    family = "albert" if name.startswith("Albert") else "bert"
    heads = HEADS[family] if "ForPreTraining" in name else ()
    _, ours, keymap, config = foreign_file(family, heads=heads)
    convert_back(File(ours), keymap, config, Destination(tmp_path))
    model, info = getattr(transformers, name).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    again, _ = loaded(Opened(DictArchive(model.state_dict()), keymap, config), archive_shapes(ours))
    assert equal(again, ours)


def test_a_mapping_that_tensorflow_albert_cannot_hold_is_refused(tmp_path):
    config = {**ALBERT, "embedding_size": 8}
    ours = drawn(canonical("albert", config))
    with pytest.raises(CheckpointError, match="must be identity to be left out"):
        convert_back(File(ours), layouts.load("tf-albert"), config, Destination(tmp_path / "out.safetensors"))
    assert list(tmp_path.iterdir()) == []
    ours |= {"embeddings.projection.weight": torch.eye(8), "embeddings.projection.bias": torch.zeros(8)}
    convert_back(File(ours), layouts.load("tf-albert"), config, Destination(tmp_path / "out.safetensors"))
    theirs = load_file(tmp_path / "out.safetensors")
    again, _ = loaded(Opened(File(theirs), layouts.load("tf-albert"), config), archive_shapes(ours))
    assert equal(again, ours)


def test_ours_that_a_layout_has_no_place_for_is_refused_by_name(tmp_path):
    ours = drawn(canonical("bert", BERT))
    with pytest.raises(CheckpointError, match=r"'adapters\.0' has no place in this layout"):
        convert_back(File({**ours, "adapters.0": torch.zeros(1)}), layouts.load("hf-bert"), BERT, Destination(tmp_path))
    with pytest.raises(CheckpointError, match=r"our file lacks 'pooler\.dense\.bias'"):
        convert_back(
            File({k: v for k, v in ours.items() if k != "pooler.dense.bias"}),
            layouts.load("hf-bert"),
            BERT,
            Destination(tmp_path),
        )


# --- the checks
# ------------------------------------------------------------------------------------------------------------------


def our_file(tmp_path):
    theirs, ours, keymap, config = foreign_file()
    convert(
        Opened(File(theirs), keymap, config),
        archive_shapes(ours),
        Destination(tmp_path / "out.safetensors"),
    )
    return load_file(tmp_path / "out.safetensors"), metadata_of(tmp_path / "out.safetensors"), archive_shapes(ours)


def test_a_file_of_ours_passes_every_check_that_can_be_tried(tmp_path):
    tensors, metadata, targets = our_file(tmp_path)
    found = verify(ours_of(tensors, metadata), targets)
    assert found.ok
    assert found.last_passed == "contract"
    assert [check.name for check in found.results] == list(checks.NAMES)
    probed = verify(ours_of(tensors, metadata), targets, probe=lambda: (True, "within 1e-6"))
    assert probed.last_passed == "probe"


def ours_of(tensors, metadata=None):
    return Opened(File(tensors, metadata), None, BERT)


def test_each_check_of_our_own_file_can_fail_and_is_then_the_last(tmp_path):
    tensors, metadata, targets = our_file(tmp_path)
    other = {**tensors, "pooler.dense.bias": tensors["pooler.dense.bias"] + 1}
    fewer = {name: tensor for name, tensor in tensors.items() if name != "pooler.dense.bias"}
    shorter = {**tensors, "pooler.dense.bias": torch.zeros(3)}
    endless = {**tensors, "pooler.dense.bias": torch.full((8,), float("nan"))}
    for held, facts, name, said in [
        (other, metadata, "hash", "was changed or damaged"),
        (fewer, {}, "keys", "lacks 'pooler.dense.bias'"),
        ({**tensors, "strange": torch.zeros(1)}, {}, "keys", "should not, 'strange'"),
        (shorter, {}, "values", "has shape (3,), the config needs (8,)"),
        (endless, {}, "values", "'pooler.dense.bias' is not finite"),
    ]:
        found = verify(ours_of(held, facts), targets)
        assert not found.ok
        assert found.failed.name == name == found.results[-1].name
        assert said in found.failed.why
    failed = verify(ours_of(tensors), targets, probe=lambda: (False, "differs by 1e-2"))
    assert failed.failed == checks.Check("probe", False, "differs by 1e-2")


def test_a_foreign_file_is_checked_without_converting_it():
    theirs, ours, keymap, config = foreign_file(ties=True)
    targets, foreign = archive_shapes(ours), keymap.config_back(config)

    def checked(tensors, **options):
        return verify(Opened(File(tensors), keymap, config, foreign, **options), targets)

    assert checked(theirs).last_passed == "contract"
    assert checked(theirs, sha256=File(theirs).sha256()).results[0].passed is True
    assert checked(theirs, sha256="0" * 64).failed.name == "hash"
    assert checked({**theirs, "bert.strange": torch.zeros(1)}).failed.name == "keys"
    assert checked({**theirs, "bert.pooler.dense.bias": torch.full((8,), torch.nan)}).failed.name == "values"
    assert checked({**theirs, "cls.predictions.decoder.bias": torch.zeros(20)}).failed.name == "ties"
    contradicted = verify(Opened(File(theirs), keymap, {**config, "norm_eps": 1e-5}, foreign), targets)
    assert contradicted.failed.name == "contract"
    assert "norm_eps=1e-12, the model has 1e-05" in contradicted.failed.why
    assert "FAILED" in str(contradicted)


def test_passengers_travel_through_a_file_of_ours(tmp_path):
    table = {
        "family": "f",
        "layout": "l",
        "version": 3,
        "rules": {"a": "b"},
        "passenger": {"extra.{i}": "stored, never used"},
        "config": {"n": "n"},
    }
    keymap = parse_map(table, "own.toml")
    theirs = {"a": torch.ones(2), "extra.0": torch.zeros(3)}
    report = convert(Opened(File(theirs), keymap, {"n": 1}), {"b": (2,)}, Destination(tmp_path / "out.safetensors"))
    assert report.parameters == 2
    tensors, metadata = load_file(tmp_path / "out.safetensors"), metadata_of(tmp_path / "out.safetensors")
    assert metadata["zoo.passengers"] == "extra.0"
    assert verify(ours_of(tensors, metadata), {"b": (2,)}).ok
    convert_back(File(tensors, metadata), keymap, {"n": 1}, Destination(tmp_path / "back.safetensors"))
    assert equal(load_file(tmp_path / "back.safetensors"), theirs)
    other = parse_map({**table, "passenger": {}}, "other.toml")
    with pytest.raises(CheckpointError, match=r"'extra\.0' has no place"):
        convert_back(File(tensors, metadata), other, {"n": 1}, Destination(tmp_path / "no.safetensors"))


def test_files_of_ours_are_recognised_by_their_metadata(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"w": torch.zeros(1)}, {"zoo.content_sha256": "0" * 64})
    assert layouts.recognise(File({"w": torch.zeros(1)}, metadata_of(tmp_path / "x.safetensors"))) == "zoo"


def test_a_file_that_was_written_in_a_foreign_layout_is_not_taken_for_ours(tmp_path):
    _, ours, keymap, config = foreign_file()
    convert_back(File(ours), keymap, config, Destination(tmp_path))
    path = tmp_path / "model.safetensors"
    assert (
        layouts.recognise(File(load_file(path), metadata_of(path)), json.loads((tmp_path / "config.json").read_text()))
        == "hf-bert"
    )


def test_the_maps_are_found_in_a_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    from zoo.registry import resources

    assert (resources.weights_folder() / "bert" / "hf-bert.toml").is_file()
    installed = tmp_path / "zoo"
    (installed / "_weights").mkdir(parents=True)
    (installed / "registry").mkdir()
    monkeypatch.setattr(resources, "__file__", str(installed / "registry" / "resources.py"))
    assert resources.weights_folder() == Path(installed / "_weights")
    (installed / "_weights").rmdir()
    with pytest.raises(UnknownNameError, match="reinstall"):
        resources.weights_folder()
