"""What lies beside a foreign checkpoint is read with it: its files as any editor leaves them, the task,
the modules of a sentence encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.api.test_create import same, tiny
from tests.checkpoints.test_ways_out import PIECES, word_pieces
from zoo.checkpoints.adapters.files import load_adapter, save_adapter
from zoo.errors import CheckpointError, ConfigError
from zoo.maps import layouts
from zoo.tokenization import wordpiece

transformers = pytest.importorskip("transformers")

MARK = b"\xef\xbb\xbf"


def marked(folder: Path) -> Path:
    """A folder whose JSON files all begin with a byte order mark."""
    files = list(folder.rglob("*.json"))
    assert files
    for file in files:
        file.write_bytes(MARK + file.read_bytes())
    return folder


@pytest.mark.parametrize("shard_size", [None, 2000])
def test_json_with_a_byte_order_mark_says_the_same(shard_size, tmp_path):
    model, tokenizer = tiny("sentence-embedding", pooling="max"), word_pieces()
    zoo.save(model, tmp_path / "ours", tokenizer, shard_size=shard_size)
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-bert", shard_size=shard_size)
    for name in ("ours", "theirs"):
        folder = marked(tmp_path / name)
        assert same(zoo.load(folder, task="sentence-embedding"), model)
        assert zoo.load(folder, task="sentence-embedding").options["pooling"] == "max"
        assert zoo.tokenizer(folder)(["a dog"])["input_ids"].tolist() == tokenizer(["a dog"])["input_ids"].tolist()
        assert zoo.inspect(folder)["layout"] == {"ours": "zoo", "theirs": "hf-bert"}[name]


@pytest.mark.parametrize("library", ["zoo", "peft", "adapters"])
def test_configs_of_adapters_with_a_byte_order_mark_are_read(library, tmp_path):
    model = tiny("masked-lm")
    zoo.apply(model, zoo.LoRA(rank=2, name="a"))
    torch.nn.init.normal_(next(p for name, p in model.named_parameters() if name.endswith(".up")))
    save_adapter(model, tmp_path / "adapter", library=library, name=None if library == "zoo" else "a")
    loaded = load_adapter(tiny("masked-lm"), marked(tmp_path / "adapter"))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        wanted, plain = model.eval()(ids).logits, tiny("masked-lm").eval()(ids).logits
        assert not torch.allclose(wanted, plain, atol=1e-6)
        assert torch.equal(loaded.eval()(ids).logits, wanted)


# --- position_embedding_type

LAYOUTS = {
    "bert-base": "hf-bert", "albert-base": "hf-albert", "distilbert-base": "hf-distilbert",
    "electra-small": "hf-electra", "ernie-1-base-chinese": "hf-ernie", "rembert": "hf-rembert",
    "roberta-base": "hf-roberta", "spanbert-base": "hf-spanbert", "xlm-roberta-base": "hf-xlm-roberta",
    "xlm-roberta-xl": "hf-xlm-roberta-xl", "visualbert-base": "hf-visualbert", "mobilebert-base": "hf-mobilebert",
    "mbart-large-cc25": "hf-mbart", "xlm-mlm-en-2048": "hf-xlm", "k-bert-base": "hf-bert-for-k-bert",
}  # fmt: skip
SILENT = {"hf-distilbert", "hf-rembert", "hf-visualbert", "hf-mobilebert", "hf-mbart", "hf-xlm"}  # have no such key


@pytest.mark.parametrize("name", LAYOUTS)
def test_positions_are_absolute_on_the_way_out_and_in_and_others_are_refused(name, tmp_path):
    layout = LAYOUTS[name]
    keymap = layouts.load(layout)
    config = keymap.config_back({**zoo.config(name).to_dict(), **keymap.config.fixed})
    assert config.get("position_embedding_type") == (None if layout in SILENT else "absolute")
    wanted = keymap.config_forward(config)
    assert keymap.config_forward({**config, "position_embedding_type": "absolute"}) == wanted
    assert keymap.config_forward({**config, "position_embedding_type": None}) == wanted
    for other in ("relative_key", "relative_key_query", "rotary", 1):
        with pytest.raises(ConfigError, match=f"'position_embedding_type' is {other!r}; only 'absolute'"):
            keymap.config_forward({**config, "position_embedding_type": other})


# --- the task

SIZES = {
    "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 18,
}  # fmt: skip
IDS = torch.arange(5, 15)[None]
CLASSES = {
    "BertForSequenceClassification": "sequence-classification",
    "RobertaForSequenceClassification": "sequence-classification",
    "DistilBertForSequenceClassification": "sequence-classification",
    "BertForTokenClassification": "token-classification",
    "ElectraForTokenClassification": "token-classification",
    "AlbertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
}


def saved(name: str, folder: Path, **more: Any) -> Any:
    """A tiny model of a class of transformers, in a folder."""
    torch.manual_seed(0)
    theirs = getattr(transformers, name)
    sizes = SIZES
    if name.startswith("Distil"):
        sizes = {
            "vocab_size": 40,
            "dim": 8,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 12,
            "max_position_embeddings": 18,
        }
    model = theirs(theirs.config_class(**sizes, **more)).eval()
    model.save_pretrained(folder)
    return model


def ways(folder: Path) -> dict[str, Any]:
    """A model by each way in that names no task: read, converted, converted to one file."""
    zoo.convert(folder, folder / "ours")
    zoo.convert(folder, folder / "ours.safetensors")
    return {str(path): zoo.load(path) for path in (folder, folder / "ours", folder / "ours.safetensors")}


@pytest.mark.parametrize("name", CLASSES)
def test_the_task_of_a_foreign_model_is_kept(name, tmp_path):
    labels = {} if "Question" in name or "Choice" in name else {"id2label": {0: "a", 1: "b", 2: "c"}}
    theirs = saved(name, tmp_path, **labels)
    ids = IDS[:, None].expand(1, 3, -1) if "Choice" in name else IDS
    with torch.no_grad():
        wanted = theirs(ids)
        for ours in ways(tmp_path).values():
            assert ours.task == CLASSES[name]
            found = ours(ids)
            for part in ("start_logits", "end_logits") if "Question" in name else ("logits",):
                assert torch.allclose(getattr(found, part), getattr(wanted, part), atol=1e-5)
            assert not ours.load_report.random
            assert not ours.load_report.notes
            if labels:
                assert ours.options["labels"] == ["a", "b", "c"]
    assert zoo.load(tmp_path, task="masked-lm").task == "masked-lm"
    names = {"Bert": "bert-base", "Albert": "albert-base", "Roberta": "roberta-base", "Electra": "electra-small"}
    if own := names.get(name.partition("For")[0]):
        assert getattr(zoo.create(own, pretrained=tmp_path), "task", None) is None


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_heads_of_pretraining_wait_until_they_are_asked_for(name, tmp_path):
    saved(name, tmp_path)
    for ours in ways(tmp_path).values():
        assert type(ours).__name__ == "Bert"
        assert not ours.load_report.notes


@pytest.mark.parametrize(
    ("said", "note"),
    [
        ("BertForSequenceClassification", "the file has no such head"),
        ("BertForQuestionAnswering", "the file has no such head"),
        ("BertForJokeDetection", "no head like that of BertForJokeDetection"),
    ],
)
def test_a_head_that_is_only_named_is_told(said, note, tmp_path):
    saved("BertForMaskedLM", tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": [said]}))
    report = zoo.convert(tmp_path, tmp_path / "ours")
    assert [note in said for said in report.notes] == [True, False]
    assert report.notes[1].startswith("no tokenizer was written")
    loaded = zoo.load(tmp_path)
    assert type(loaded).__name__ == type(zoo.load(tmp_path / "ours")).__name__ == "Bert"
    assert note in str(loaded.load_report)


def test_a_sentence_encoder_is_one_without_being_asked(tmp_path):
    model = tiny("sentence-embedding", pooling="cls", normalize=False)
    zoo.convert(zoo.save(model, tmp_path / "first"), tmp_path / "theirs", to="hf-bert")
    for ours in ways(tmp_path / "theirs").values():
        assert ours.task == "sentence-embedding"
        assert (ours.options["pooling"], ours.options["normalize"]) == ("cls", False)


# --- a sentence encoder's modules


def encoder(folder: Path, modules: list[tuple[str, dict[str, Any], dict[str, torch.Tensor]]], old: bool) -> Any:
    """A folder as sentence-transformers writes it, by hand. -> its model of transformers."""
    model = saved("BertModel", folder)
    place = "sentence_transformers.models." if old else "sentence_transformers.sentence_transformer.modules.x."
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False} if old else {"pooling_mode": "mean"}
    listed = [("Transformer", "", {}, {}), ("Pooling", "1_Pooling", pooling, {})]
    listed += [(kind, f"{number}_{kind}", *rest) for number, (kind, *rest) in enumerate(modules, 2)]
    written = [{"idx": n, "name": str(n), "path": p, "type": place + kind} for n, (kind, p, _, _) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(written))
    for _, path, config, tensors in listed[1:]:
        (folder / path).mkdir()
        if config or not old:
            (folder / path / "config.json").write_text(json.dumps(config))
        if tensors and old:
            torch.save(tensors, folder / path / "pytorch_model.bin")
        elif tensors:
            save_file(tensors, folder / path / "model.safetensors")
    return model


def dense(size_in: int, size: int, seed: int, activation: str, bias: bool = True, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"linear.weight": torch.randn(size, size_in, generator=generator)}
    tensors |= {"linear.bias": torch.randn(size, generator=generator)} if bias else {}
    if more.get("use_residual") and size != size_in:
        tensors["residual.weight"] = torch.randn(size, size_in, generator=generator)
    named = f"torch.nn.modules.{'linear' if activation == 'Identity' else 'activation'}.{activation}"
    config = {"in_features": size_in, "out_features": size, "bias": bias, "activation_function": named, **more}
    return "Dense", config, tensors


NORM = ("LayerNorm", {"dimension": 6}, {"norm.weight": torch.arange(6.0) / 3, "norm.bias": torch.ones(6)})
NORMALIZE: Any = ("Normalize", {}, {})


def encoded(model: Any, ids: torch.Tensor, modules: Any) -> torch.Tensor:
    """The mean of the states, through the modules, by formula."""
    x = model(ids).last_hidden_state.mean(1)
    for kind, config, tensors in modules:
        if kind == "Dense":
            y = x @ tensors["linear.weight"].T + tensors.get("linear.bias", 0.0)
            y = getattr(torch.nn, config["activation_function"].rsplit(".", 1)[-1])()(y)
            own = x @ tensors["residual.weight"].T if "residual.weight" in tensors else x
            x = y + own if config.get("use_residual") else y
        elif kind == "LayerNorm":
            x = torch.nn.functional.layer_norm(x, (6,), tensors["norm.weight"], tensors["norm.bias"], 1e-5)
        elif kind == "Normalize":
            x = x / x.norm(dim=1, keepdim=True)
    return x


ENCODERS: dict[str, Any] = {
    "a dense layer": [dense(8, 6, 1, "Tanh")],
    "dense, norm, normalized": [dense(8, 6, 1, "GELU"), NORM, NORMALIZE],
    "two of a kind": [
        dense(8, 6, 1, "ReLU"),
        ("Dropout", {"dropout": 0.3}, {}),
        dense(6, 4, 2, "Identity", bias=False),
    ],
    "residual": [dense(8, 8, 1, "SiLU", use_residual=True), dense(8, 5, 2, "Sigmoid", use_residual=True), NORMALIZE],
}


@pytest.mark.parametrize("old", [True, False], ids=["old", "new"])
@pytest.mark.parametrize("kind", ENCODERS)
def test_layers_behind_the_pooling_are_read_and_written(kind, old, tmp_path):
    modules = ENCODERS[kind]
    theirs = encoder(tmp_path / "theirs", modules, old)
    with torch.no_grad():
        wanted = encoded(theirs, IDS, modules)
        zoo.convert(tmp_path / "theirs", tmp_path / "ours")
        zoo.convert(tmp_path / "ours", tmp_path / "back", to="hf-bert")
        zoo.save(zoo.load(tmp_path / "theirs"), tmp_path / "saved")
        zoo.convert(tmp_path / "saved", tmp_path / "back of saved", to="hf-bert")
        for name in ("theirs", "ours", "back", "saved", "back of saved"):
            found = zoo.load(tmp_path / name)
            assert not found.load_report.random
            assert torch.allclose(found(IDS).embedding, wanted, atol=1e-6)
            assert zoo.verify(tmp_path / name).ok
    for number, (module, config, tensors) in enumerate(modules, 2):
        path = tmp_path / "back" / f"{number}_{module}"
        if module != "Normalize":
            assert json.loads((path / "config.json").read_text()) == {**config}
        if tensors:
            stored = load_file(path / "model.safetensors")
            assert stored.keys() == tensors.keys()
            assert all(torch.equal(stored[key], tensors[key]) for key in tensors)
    bare = zoo.create("bert-base", pretrained=tmp_path / "theirs")
    assert any("Dense" in name for name in bare.load_report.left_out)
    with pytest.raises(CheckpointError, match=r"folders of their own.*\n.*hf-"):
        zoo.convert(tmp_path / "ours", tmp_path / "file.safetensors", to="hf-bert")


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([("WeightedLayerPooling", {}, {})], "WeightedLayerPooling"),
        ([NORMALIZE, dense(8, 6, 1, "Tanh")], "Normalize, Dense"),
        ([dense(8, 6, 1, "Hardshrink")], "Hardshrink"),
        ([dense(8, 6, 1, "Tanh", module_input_name="token_embeddings")], "module_input_name 'token_embeddings'"),
        ([dense(8, 6, 1, "Tanh", gate=2)], "'gate': 2"),
        ([("Dense", dense(8, 6, 1, "Tanh")[1], {})], "holds none of model.safetensors, pytorch_model.bin"),
        ([("Dense", dense(8, 6, 1, "Tanh")[1], dense(8, 7, 1, "Tanh")[2])], "heads.sentence_embedding.0.linear"),
    ],
)
def test_modules_that_the_task_has_no_word_for_are_refused(modules, says, tmp_path):
    encoder(tmp_path / "theirs", modules, old=False)
    for call in (
        lambda: zoo.load(tmp_path / "theirs"),
        lambda: zoo.load(tmp_path / "theirs", task="sentence-embedding"),
        lambda: zoo.convert(tmp_path / "theirs", tmp_path / "ours"),
    ):
        with pytest.raises(CheckpointError, match=says):
            call()
    if modules[0][2] and modules[0][1].get("out_features") != 6:
        assert type(zoo.create("bert-base", pretrained=tmp_path / "theirs")).__name__ == "Bert"


def test_a_prompt_that_goes_before_each_text_is_told(tmp_path):
    encoder(tmp_path / "theirs", [NORMALIZE], old=False)
    said = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    place = tmp_path / "theirs" / "config_sentence_transformers.json"
    for task in (None, "sentence-embedding"):
        place.write_text(json.dumps(said))
        assert "puts 'query: ' in front of each text" in str(zoo.load(tmp_path / "theirs", task=task).load_report)
        place.write_text(json.dumps({**said, "default_prompt_name": None}))
        assert not zoo.load(tmp_path / "theirs", task=task).load_report.notes
    place.write_text(json.dumps(said))
    assert any("'query: '" in note for note in zoo.convert(tmp_path / "theirs", tmp_path / "ours").notes)


def test_a_model_in_a_folder_of_its_own_is_refused_with_the_step_that_helps(tmp_path):
    encoder(tmp_path / "theirs", [NORMALIZE], old=True)
    listed = json.loads((tmp_path / "theirs" / "modules.json").read_text())
    listed[0]["path"] = "0_Transformer"
    (tmp_path / "theirs" / "0_Transformer").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "theirs" / name).rename(tmp_path / "theirs" / "0_Transformer" / name)
    (tmp_path / "theirs" / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match=r"lies in its folder '0_Transformer'.*\n.*zoo.load"):
        zoo.load(tmp_path / "theirs")
    assert type(zoo.load(tmp_path / "theirs" / "0_Transformer")).__name__ == "Bert"


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/../../b"])
def test_modules_do_not_lead_out_of_their_folder(path, tmp_path):
    encoder(tmp_path / "theirs", [dense(8, 6, 1, "Tanh")], old=False)
    listed = json.loads((tmp_path / "theirs" / "modules.json").read_text())
    listed[2]["path"] = path
    (tmp_path / "theirs" / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(CheckpointError, match="leads out of its folder"):
        zoo.load(tmp_path / "theirs")


@pytest.mark.parametrize("cased", [True, False])
def test_a_sentence_encoder_lowers_its_texts_where_it_says_so(cased, tmp_path):
    zoo.save(tiny(), tmp_path / "ours", word_pieces() if not cased else cased_pieces())
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-bert")
    texts, config = ["A DOG", "the Cat [MASK] É"], tmp_path / "theirs" / "sentence_bert_config.json"
    lowered = [text.lower().replace("[mask]", "[MASK]") for text in texts]
    plain = zoo.tokenizer(tmp_path / "theirs")
    wanted = plain(lowered)["input_ids"]
    assert torch.equal(plain(texts)["input_ids"], wanted) != cased
    config.write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
    tokenizer = zoo.tokenizer(tmp_path / "theirs")
    assert torch.equal(tokenizer(texts)["input_ids"], wanted)
    tokenizer.save(tmp_path / "again")
    assert torch.equal(zoo.tokenizer(tmp_path / "again")(texts)["input_ids"], wanted)
    config.write_text(json.dumps({"do_lower_case": "yes"}))
    with pytest.raises(CheckpointError, match="do_lower_case must be true, false or null, got 'yes'"):
        zoo.tokenizer(tmp_path / "theirs")


def cased_pieces() -> Any:
    return wordpiece.wordpiece({piece: n for n, piece in enumerate(PIECES)}, lower_case=False, max_length=12)
