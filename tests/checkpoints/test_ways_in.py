"""What lies beside a foreign checkpoint is read with it: its files as any editor leaves them, the task,
the modules of a sentence encoder.
"""

from __future__ import annotations

from pathlib import Path

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
