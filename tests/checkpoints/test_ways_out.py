"""A folder on the way out is whole: transformers loads its model, labels and tokenizer, and gives what
the zoo gives. What the target layout cannot say is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from torch.nn import functional as F

import zoo
from tests.api.test_create import TINY, tiny
from zoo.errors import CheckpointError, ConfigError
from zoo.tokenization import wordpiece

transformers = pytest.importorskip("transformers")

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "b", "dog", "cat", "the", ",", "!", "5", "##5"]
ODD = [
    "a dog", "The CAT!", "é è", "[MASK] dog", "  a   b", "a\tb\nc", "55,5", "[CLS] x [SEP]", "", "中文 dog", "a" * 120,
    "b." * 30, "İstanbul", "a\u200bb", "ﬁ", "dog\u00a0cat", "\u2028", "\x00a", "á", "a" + "\u0301" * 5, "🐕‍🦺 dog",
    "</s><pad>", "५५", "١٢", "ダ", "ｄｏｇ", "[mask]", "DOG[MASK]", "!,!", "ß",
]  # fmt: skip
MODELS = {
    "bert-base": "hf-bert",
    "albert-base": "hf-albert",
    "distilbert-base": "hf-distilbert",
    "electra-small": "hf-electra",
    "ernie-1-base-chinese": "hf-ernie",
    "rembert": "hf-rembert",
    "roberta-base": "hf-roberta",
    "spanbert-base": "hf-spanbert",
    "xlm-roberta-base": "hf-xlm-roberta",
    "xlm-roberta-xl": "hf-xlm-roberta-xl",
}


def word_pieces(max_length: int | None = 12) -> Any:
    return wordpiece.wordpiece(
        {piece: number for number, piece in enumerate(PIECES)}, lower_case=True, max_length=max_length
    )


def unigram() -> tokenizers.Tokenizer:
    """A tokenizer like ALBERT's: pieces with scores, and its frame."""
    pieces = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "▁", "▁a", "▁dog", "d", "o", "g", "c", "t", "5", ",", "!"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=1)
    )
    backend.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFKD(), tokenizers.normalizers.StripAccents(), tokenizers.normalizers.Lowercase()]
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.decoder = tokenizers.decoders.Metaspace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"])
    return backend


def shaken(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Random numbers in every parameter, norms and biases too, so that no head is near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def same_ids(theirs: Any, ours: Any) -> list[str]:
    """The odd texts that two tokenizers read differently."""
    return [text for text in ODD if theirs(text, truncation=True)["input_ids"] != ours([text])["input_ids"][0].tolist()]


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_a_classifier_with_its_labels_and_tokenizer(name, tmp_path):
    names = ["bad", "so-so", "good"]
    ours = shaken(tiny("sequence-classification", name, labels=names))
    tokenizer = word_pieces()
    zoo.save(ours, tmp_path / "ours", tokenizer)
    report = zoo.convert(tmp_path / "ours", tmp_path / "theirs", to=MODELS[name])
    assert report.notes == ()
    assert all(file.is_file() for file in report.files)
    theirs, problems = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "theirs", output_loading_info=True
    )
    assert not [*problems["missing_keys"], *problems["unexpected_keys"]]
    assert theirs.config.id2label == dict(enumerate(names))
    assert theirs.config.label2id == {label: number for number, label in enumerate(names)}
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert same_ids(their_tokenizer, tokenizer) == []
    assert their_tokenizer.model_max_length == 12
    assert their_tokenizer.mask_token_id == tokenizer.mask_token_id
    segments = name not in ("distilbert-base", "roberta-base", "xlm-roberta-base", "xlm-roberta-xl")
    assert ("token_type_ids" in their_tokenizer.model_input_names) == segments
    with torch.no_grad():
        wanted = theirs(**their_tokenizer(ODD[:6], padding=True, truncation=True, return_tensors="pt")).logits
        found = ours(**{key: value for key, value in tokenizer(ODD[:6]).items() if key in ours.names}).logits
    assert float(wanted.abs().max()) > 0.05
    assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "name", "layout", "their_class"),
    [
        ("token-classification", "bert-base", "hf-bert", "AutoModelForTokenClassification"),
        ("token-classification", "distilbert-base", "hf-distilbert", "AutoModelForTokenClassification"),
        ("visual-question-answering", "visualbert-base", "hf-visualbert", "VisualBertForQuestionAnswering"),
    ],
)
@pytest.mark.parametrize("names", [None, ["a", "b", "c", "d", "e"]])
def test_other_heads_with_labels_load_too(task, name, layout, their_class, names, tmp_path):
    more = {"visual_size": 6} if name.startswith("visual") else {}
    ours = tiny(task, name, num_labels=5, labels=names, **more)
    zoo.convert(zoo.save(ours, tmp_path / "ours"), tmp_path / "theirs", to=layout)
    theirs, problems = getattr(transformers, their_class).from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not [*problems["missing_keys"], *problems["unexpected_keys"]]
    assert theirs.config.id2label == dict(enumerate(names or [f"LABEL_{label}" for label in range(5)]))


def test_a_classifier_comes_back_from_the_zoo_as_it_came(tmp_path):
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=40, embedding_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_hidden_groups=1,
        intermediate_size=12, max_position_embeddings=16, problem_type="multi_label_classification",
        id2label={0: "neg", 1: "neutral", 2: "pos"}, label2id={"neg": 0, "neutral": 1, "pos": 2},
    )  # fmt: skip
    model = shaken(transformers.AlbertForSequenceClassification(config))
    model.save_pretrained(tmp_path / "theirs")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram(), cls_token="[CLS]", sep_token="[SEP]", pad_token="<pad>", mask_token="[MASK]",
        unk_token="<unk>", model_max_length=16,
    )  # fmt: skip
    fast.save_pretrained(tmp_path / "theirs")
    zoo.convert(tmp_path / "theirs", tmp_path / "ours")
    loaded = zoo.load(tmp_path / "ours", task="sequence-classification")
    assert loaded.options["labels"] == ["neg", "neutral", "pos"]
    assert loaded.options["problem_type"] == "multi-label"
    zoo.save(loaded, tmp_path / "saved", zoo.tokenizer(tmp_path / "ours"))
    for source in ("ours", "saved"):
        zoo.convert(tmp_path / source, tmp_path / f"{source} back", to="hf-albert")
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / f"{source} back").eval()
        assert again.config.id2label == config.id2label
        assert again.config.problem_type == "multi_label_classification"
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / f"{source} back")
        assert [tokenizer(text)["input_ids"] for text in ODD] == [fast(text)["input_ids"] for text in ODD]
        batch = tokenizer(ODD[:6], padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_camembert_is_read_as_the_roberta_that_it_is(tmp_path):
    torch.manual_seed(0)
    config = transformers.CamembertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=18, type_vocab_size=1,
    )  # fmt: skip
    model = shaken(transformers.CamembertForMaskedLM(config))
    model.save_pretrained(tmp_path / "theirs")
    ids = torch.arange(5, 15)[None]
    ours = zoo.load(tmp_path / "theirs", task="masked-lm")
    with torch.no_grad():
        assert torch.allclose(ours(ids).logits, model(ids).logits, atol=1e-5)
    zoo.convert(zoo.save(ours, tmp_path / "ours"), tmp_path / "back", to="hf-roberta")
    with torch.no_grad():
        again = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "back").eval()
        assert torch.allclose(again(ids).logits, model(ids).logits, atol=1e-5)


def bert(tmp_path: Path, **more: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16, **more,
    )  # fmt: skip
    model = shaken(transformers.BertForSequenceClassification(config))
    model.save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification", "single_label_classification"])
def test_the_loss_is_the_one_that_the_config_names(problem, tmp_path):
    theirs = bert(tmp_path, num_labels=3, problem_type=problem)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (4, 6), generator=generator)
    labels = torch.tensor([0, 2, 1, 1]) if problem.startswith("single") else torch.rand(4, 3, generator=generator)
    wanted = float(theirs(ids, labels=labels).loss)
    ours = zoo.load(tmp_path, task="sequence-classification")
    assert float(ours(ids, labels=labels).loss) == pytest.approx(wanted, abs=1e-5)
    zoo.convert(tmp_path, tmp_path / "ours")
    again = zoo.load(tmp_path / "ours", task="sequence-classification")
    assert float(again(ids, labels=labels).loss) == pytest.approx(wanted, abs=1e-5)
    zoo.convert(tmp_path / "ours", tmp_path / "back", to="hf-bert")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["problem_type"] == problem


def test_names_of_labels_that_contradict_are_refused_and_a_new_number_drops_them(tmp_path):
    names = {0: "x", 1: "y", 2: "z"}
    bert(tmp_path, id2label=names, label2id={name: number for number, name in names.items()})
    assert zoo.load(tmp_path, task="token-classification").options["labels"] == ["x", "y", "z"]
    other = zoo.load(tmp_path, task="sequence-classification", num_labels=5)
    assert (other.options["labels"], other.options["num_labels"]) == (None, 5)
    config = json.loads((tmp_path / "config.json").read_text())
    for wrong, says in (({"0": "x", "2": "z"}, "from 0 to 1"), ({"0": "x", "1": "y"}, "names 2 labels")):
        (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": wrong}))
        with pytest.raises(ConfigError, match=says):
            zoo.load(tmp_path, task="sequence-classification")
    with pytest.raises(ConfigError, match="names 2 labels, num_labels=3"):
        tiny("sequence-classification", num_labels=3, labels=["a", "b"])
    with pytest.raises(ConfigError, match="a list of the labels' names"):
        tiny("sequence-classification", labels="ab")


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_a_sentence_encoder_brings_its_modules(pooling, normalize, tmp_path):
    ours = shaken(tiny("sentence-embedding", pooling=pooling, normalize=normalize))
    tokenizer = word_pieces(max_length=10)
    zoo.convert(zoo.save(ours, tmp_path / "ours", tokenizer), tmp_path / "theirs", to="hf-bert")
    theirs = tmp_path / "theirs"
    kinds = [module["type"].rsplit(".")[-1] for module in json.loads((theirs / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    assert json.loads((theirs / "sentence_bert_config.json").read_text())["max_seq_length"] == 10
    said = json.loads((theirs / "1_Pooling" / "config.json").read_text())
    assert said["word_embedding_dimension"] == 8
    batch = transformers.AutoTokenizer.from_pretrained(theirs)(
        ODD[:6], padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        states = transformers.AutoModel.from_pretrained(theirs).eval()(**batch).last_hidden_state
        real = batch["attention_mask"].unsqueeze(2)
        if said["pooling_mode_mean_tokens"]:
            wanted = (states * real).sum(1) / real.sum(1)
        elif said["pooling_mode_max_tokens"]:
            wanted = states.masked_fill(real == 0, -1e9).amax(1)
        else:
            wanted = states[:, 0]
        wanted = F.normalize(wanted, dim=1) if normalize else wanted
        assert torch.allclose(ours(**tokenizer(ODD[:6])).embedding, wanted, atol=1e-5)
        again = zoo.load(theirs, task="sentence-embedding")
        assert torch.allclose(again(**zoo.tokenizer(theirs)(ODD[:6])).embedding, wanted, atol=1e-5)


def test_the_modules_of_new_sentence_encoders_are_read(tmp_path):
    zoo.convert(zoo.save(tiny("sentence-embedding"), tmp_path / "ours"), tmp_path / "theirs", to="hf-bert")
    pooling = tmp_path / "theirs" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"embedding_dimension": 8, "pooling_mode": "max", "include_prompt": True}))
    assert zoo.load(tmp_path / "theirs", task="sentence-embedding").options["pooling"] == "max"
    pooling.write_text(json.dumps({"embedding_dimension": 8, "pooling_mode": ["max", "mean"]}))
    with pytest.raises(CheckpointError, match="exactly one of mean, max, cls"):
        zoo.load(tmp_path / "theirs", task="sentence-embedding")


def test_a_sentence_encoder_says_how_long_its_texts_are(tmp_path):
    zoo.save(tiny(), tmp_path / "ours", word_pieces(12))
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-bert")
    (tmp_path / "theirs" / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    assert zoo.tokenizer(tmp_path / "theirs").max_length == 7


@pytest.mark.parametrize("technique", [zoo.SlidingWindow(radius=2), zoo.StridedAttention(stride=2)], ids=str)
def test_what_no_layout_can_say_is_refused_before_anything_is_written(technique, tmp_path):
    model = tiny("masked-lm")
    zoo.apply(model, technique)
    zoo.save(model, tmp_path / "ours")
    for out in ("theirs", "theirs.safetensors"):
        with pytest.raises(CheckpointError, match=f"{type(technique).__name__}.*hf-bert cannot say"):
            zoo.convert(tmp_path / "ours", tmp_path / out, to="hf-bert")
        assert not (tmp_path / out).exists()


def test_a_model_with_pruned_weights_goes_out_as_it_is(tmp_path):
    model = tiny("masked-lm")
    zoo.apply(model, zoo.WeightPruning(sparsity=0.5))
    zoo.convert(zoo.save(model, tmp_path / "ours"), tmp_path / "theirs", to="hf-bert")
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "theirs").eval()(ids).logits
        assert torch.allclose(model.eval()(ids).logits, theirs, atol=1e-6)


def test_an_xlm_tokenizer_goes_out_as_its_own_files(tmp_path):
    vocabulary = ["<s>", "</s>", "<pad>", "<unk>", *(f"<special{n}>" for n in range(10)), "a</w>", "b", "ab</w>"]
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "vocab.json").write_text(json.dumps({token: n for n, token in enumerate(vocabulary)}))
    (tmp_path / "from" / "merges.txt").write_text("a b</w> 10\n")
    (tmp_path / "from" / "config.json").write_text(json.dumps({"model_type": "xlm"}))
    from zoo.checkpoints.companions import write_tokenizer
    from zoo.tokenization import load_tokenizer

    write_tokenizer(load_tokenizer(tmp_path / "from"), tmp_path / "from", 16)
    described = json.loads((tmp_path / "from" / "tokenizer_config.json").read_text())
    assert (described["tokenizer_class"], described["model_max_length"]) == ("XLMTokenizer", 16)
    assert json.loads((tmp_path / "from" / "vocab.json").read_text()) == {t: n for n, t in enumerate(vocabulary)}
    assert (tmp_path / "from" / "merges.txt").read_text().splitlines() == ["a b</w>"]


@pytest.mark.parametrize(("name", "longest"), [("bert-base", 16), ("roberta-base", 14)])
def test_a_tokenizer_without_a_length_takes_the_models(name, longest, tmp_path):
    zoo.save(tiny("sentence-embedding", name), tmp_path / "ours", word_pieces(None))
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to=MODELS[name])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs").model_max_length == longest
    assert json.loads((tmp_path / "theirs" / "sentence_bert_config.json").read_text())["max_seq_length"] == longest


@pytest.mark.parametrize(
    ("name", "layout"), [("bert-base", "hf-bert"), ("roberta-base", "hf-roberta"), ("xlm-mlm-en-2048", "hf-xlm")]
)
def test_a_pair_of_texts_gives_there_what_it_gives_here(name, layout, tmp_path):
    """RoBERTa has one segment, and to XLM a segment is one more token: BERT's tokenizer numbers two."""
    fields = zoo.config(name).field_names()
    sizes = {field: value for field, value in TINY.items() if field in fields}
    ours, tokenizer = shaken(zoo.create(name, task="masked-lm", **sizes)), word_pieces()
    zoo.save(ours, tmp_path / "ours", tokenizer)
    zoo.convert(tmp_path / "ours", tmp_path / "theirs", to=layout)
    batch = transformers.AutoTokenizer.from_pretrained(tmp_path / "theirs")("a dog", "the cat", return_tensors="pt")
    assert batch["input_ids"].tolist() == tokenizer(["a dog"], ["the cat"])["input_ids"].tolist()
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "theirs").eval()
    taken = {key: value for key, value in tokenizer(["a dog"], ["the cat"]).items() if key in batch}
    with torch.no_grad():
        assert torch.allclose(theirs(**batch).logits, ours(**taken).logits, atol=1e-5)


def test_a_saved_file_says_its_format_as_other_loaders_ask(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    zoo.save(tiny(), tmp_path / "ours")
    with safetensors.safe_open(tmp_path / "ours" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_without_a_tokenizer_the_report_says_so(tmp_path):
    zoo.save(tiny(), tmp_path / "ours")
    report = zoo.convert(tmp_path / "ours", tmp_path / "theirs", to="hf-bert")
    assert report.notes == ("no tokenizer.json lies beside the source, so no tokenizer was written",)
    assert sorted(file.name for file in (tmp_path / "theirs").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("name", "layout", "sizes"),
    [
        ("uniter-base", "uniter", {"region_target_size": 5}),
        ("lxmert-base", "hf-lxmert", {"image_num_layers": 1, "cross_num_layers": 1}),
    ],
)
def test_a_head_over_answers_comes_back_with_its_task(name, layout, sizes, tmp_path):
    small = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "vocab_size": 40}
    options = {**small, **sizes, "visual_size": 8, "num_labels": 7}
    model = zoo.create(name, task="visual-question-answering", **options)
    zoo.convert(zoo.save(model, tmp_path / "ours"), tmp_path / "theirs", to=layout)
    zoo.convert(tmp_path / "theirs", tmp_path / "back")
    for folder in ("theirs", "back"):
        again = zoo.load(tmp_path / folder)
        assert again.task == "visual-question-answering"
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
