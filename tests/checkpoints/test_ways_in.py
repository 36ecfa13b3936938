"""What lies beside a foreign checkpoint is read with it: its files as any editor leaves them, the task,
the modules of a sentence encoder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.api.test_create import same, tiny
from tests.checkpoints.test_ways_out import word_pieces
from zoo.checkpoints.adapters.files import load_adapter, save_adapter
from zoo.errors import ConfigError
from zoo.maps import layouts

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
    assert len(report.notes) == 1
    assert note in report.notes[0]
    loaded = zoo.load(tmp_path)
    assert type(loaded).__name__ == type(zoo.load(tmp_path / "ours")).__name__ == "Bert"
    assert note in str(loaded.load_report)


def test_a_sentence_encoder_is_one_without_being_asked(tmp_path):
    model = tiny("sentence-embedding", pooling="cls", normalize=False)
    zoo.convert(zoo.save(model, tmp_path / "first"), tmp_path / "theirs", to="hf-bert")
    for ours in ways(tmp_path / "theirs").values():
        assert ours.task == "sentence-embedding"
        assert (ours.options["pooling"], ours.options["normalize"]) == ("cls", False)
