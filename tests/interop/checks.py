"""What other libraries read of the zoo's files, and the zoo of theirs: one function for each claim of
``docs/guides/interop.md``.

A check gets an empty folder, writes by one side, reads by the other, compares what both give, and
returns the largest difference as a part of the result's largest value: 0.0 is equal bit for bit. It
asserts what is no number: ids of texts, names of labels, that no tensor was missing or left over.
Its row in the table is its library, which of the two reads, and its docstring.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zoo
from tests.api.test_create import tiny
from tests.checkpoints.test_ways_out import MODELS, ODD, shaken, unigram, word_pieces
from zoo.checkpoints.adapters import load_adapter, save_adapter

LABELS = ["bad", "so-so", "good"]
TEXTS = ODD[:6]
SENTENCES = ["A man is playing a guitar.", "Someone plays an instrument.", "The senate passed the bill."]
REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F>>CC(C)Sc1ncccc1F"
CHAIN = "QLVSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQG"


@dataclass(frozen=True)
class Check:
    """One claim. ``library``: the distribution that is needed, which ``reads`` what the zoo wrote or
    writes what the zoo reads; ``trained``: on weights that a package ships, else on tiny random ones;
    ``slow``: not for the suite.
    """

    library: str
    reads: bool
    run: Callable[[Path], float]
    trained: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def claim(self) -> str:
        return " ".join((self.run.__doc__ or "").split()).rstrip(".")

    @property
    def installed(self) -> bool:
        return all(_has(name) for name in (self.library, *NEEDS.get(self.library, ())))


NEEDS = {"optimum-onnx": ("onnxruntime",), "onnxruntime": ("onnxscript",), "openvino": ("onnxscript",)}
CHECKS: list[Check] = []


def _has(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def check(library: str, *, reads: bool, trained: bool = False, slow: bool = False) -> Any:
    """Enter a function as a check."""

    def entered(function: Callable[[Path], float]) -> Callable[[Path], float]:
        CHECKS.append(Check(library, reads, function, trained, slow or trained))
        return function

    return entered


# --- parts ---


def apart(ours: Tensor, theirs: Any) -> float:
    """The largest difference, as a part of their largest value; of NaN an error."""
    theirs = torch.as_tensor(theirs)
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    assert ours.isfinite().all()
    assert theirs.isfinite().all()
    return float((ours.detach() - theirs).abs().max()) / float(theirs.abs().max())


def classifier(name: str = "bert-base") -> Any:
    return shaken(tiny("sequence-classification", name, labels=LABELS))


def encoder(**options: Any) -> Any:
    return shaken(tiny("sentence-embedding", **options))


def written(model: nn.Module, folder: Path, layout: str, tokenizer: Any = None) -> Path:
    """The model saved and sent to a public layout, by the call of the README."""
    zoo.save(model, folder / "ours", tokenizer if tokenizer is not None else word_pieces())
    zoo.convert(folder / "ours", folder / "theirs", to=layout)
    return folder / "theirs"


def whole(cls: Any, source: Path, **options: Any) -> Any:
    """What transformers loads, once nothing was missing or left over."""
    model, problems = cls.from_pretrained(source, output_loading_info=True, **options)
    assert not [*problems["missing_keys"], *problems["unexpected_keys"], *problems["mismatched_keys"]]
    return model.eval()


def same_reading(theirs: Any, ours: Any, texts: list[str]) -> None:
    """Both tokenizers give one text the same ids."""
    other = [t for t in texts if theirs(t, truncation=True)["input_ids"] != ours([t])["input_ids"][0].tolist()]
    assert not other, f"other ids for {other}"


@torch.no_grad()
def both(ours: Any, theirs: Any, our_tokenizer: Any, their_tokenizer: Any, texts: list[str] = TEXTS) -> float:
    """The distance of two models' logits, each with all that its tokenizer makes."""
    batch = our_tokenizer(texts)
    if "token_type_ids" not in their_tokenizer.model_input_names:
        batch.pop("token_type_ids", None)
    other = their_tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return apart(ours(**batch).logits, theirs(**other).logits)


# --- transformers ---


@check("transformers", reads=True)
def classifiers_out(folder: Path) -> float:
    """A classifier of three labels, ten families: labels, ids of 30 unusual texts, logits."""
    import transformers

    worst = 0.0
    for name, layout in MODELS.items():
        ours, tokenizer = classifier(name), word_pieces()
        there = written(ours, folder / name, layout, tokenizer)
        theirs = whole(transformers.AutoModelForSequenceClassification, there)
        assert theirs.config.id2label == dict(enumerate(LABELS))
        their_tokenizer = transformers.AutoTokenizer.from_pretrained(there)
        same_reading(their_tokenizer, tokenizer, ODD)
        worst = max(worst, both(ours, theirs, tokenizer, their_tokenizer))
    return worst


@check("transformers", reads=True)
def albert_and_back(folder: Path) -> float:
    """An ALBERT of three labels with SentencePiece, there and back: labels, ids of 30 unusual texts, logits of both."""
    import transformers

    backend = unigram()
    config = transformers.AlbertConfig(
        vocab_size=16, embedding_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=16, id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = shaken(transformers.AlbertForSequenceClassification(config))
    theirs.save_pretrained(folder / "theirs")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="<pad>", mask_token="[MASK]",
        unk_token="<unk>", model_max_length=16,
    )  # fmt: skip
    fast.save_pretrained(folder / "theirs")
    zoo.convert(folder / "theirs", folder / "ours")
    ours, tokenizer = zoo.load(folder / "ours", task="sequence-classification"), zoo.tokenizer(folder / "ours")
    assert ours.options["labels"] == LABELS
    same_reading(fast, tokenizer, ODD)
    zoo.convert(folder / "ours", folder / "again", to="hf-albert")
    again = whole(transformers.AutoModelForSequenceClassification, folder / "again")
    assert again.config.id2label == dict(enumerate(LABELS))
    back = transformers.AutoTokenizer.from_pretrained(folder / "again")
    same_reading(back, tokenizer, ODD)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    return max(both(ours, theirs, tokenizer, fast), both(ours, again, tokenizer, back))


@check("transformers", reads=True)
def other_heads_out(folder: Path) -> float:
    """The heads for tokens, spans, choices and masked words of a BERT: logits."""
    import transformers

    heads = {
        "token-classification": "AutoModelForTokenClassification",
        "question-answering": "AutoModelForQuestionAnswering",
        "multiple-choice": "AutoModelForMultipleChoice",
        "masked-lm": "AutoModelForMaskedLM",
    }
    ids = torch.arange(5, 13).reshape(2, 4)
    worst = 0.0
    for task, cls in heads.items():
        ours = shaken(tiny(task))
        theirs = whole(getattr(transformers, cls), written(ours, folder / task, "hf-bert"))
        given = torch.stack([ids, ids + 1], 1) if task == "multiple-choice" else ids
        with torch.no_grad():
            mine, other = ours(given), theirs(given)
        for name in ("start_logits", "end_logits") if task == "question-answering" else ("logits",):
            worst = max(worst, apart(getattr(mine, name), getattr(other, name)))
    return worst


@check("transformers", reads=False)
def classifiers_in(folder: Path) -> float:
    """Classifiers that `save_pretrained` wrote, eight families: labels, logits."""
    import transformers

    names = ("Albert", "Bert", "DistilBert", "Electra", "Ernie", "RemBert", "Roberta", "XLMRoberta")
    ids = torch.arange(5, 13).reshape(2, 4)
    sizes = {
        "vocab_size": 40, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 16, "num_labels": 3, "embedding_size": 8, "input_embedding_size": 8,
        "output_embedding_size": 8, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12,
        "id2label": dict(enumerate(LABELS)), "label2id": {label: number for number, label in enumerate(LABELS)},
    }  # fmt: skip
    worst = 0.0
    for name in names:
        config = getattr(transformers, f"{name}Config")
        own = config().to_dict()
        made = config(**{key: value for key, value in sizes.items() if key in own or "label" in key})
        torch.manual_seed(0)
        theirs = shaken(getattr(transformers, f"{name}ForSequenceClassification")(made))
        theirs.save_pretrained(folder / name)
        ours = zoo.load(folder / name, task="sequence-classification")
        assert ours.options["labels"] == LABELS
        with torch.no_grad():
            worst = max(worst, apart(ours(ids).logits, theirs(ids).logits))
    return worst


@check("transformers", reads=True, trained=True)
def trained_out(folder: Path) -> float:
    """MiniLM, ALBERT and BERT for chemical reactions, and sapiens' RoBERTa, after `zoo convert --to`: last states."""
    import transformers

    texts = {
        "minilm-l6-h384.all-minilm-l6-v2": ("hf-bert", SENTENCES),
        "albert-rxn.rxnmapper": ("hf-albert", [REACTION]),
        "bert-rxn.pretrained": ("hf-bert", [REACTION]),
        "roberta-antibody.sapiens-vh": ("hf-roberta", [CHAIN]),
    }
    worst = 0.0
    for tag, (layout, given) in texts.items():
        ours, tokenizer = zoo.create(tag, pretrained=True).eval(), zoo.tokenizer(tag)
        zoo.convert(tag, folder / "ours" / tag)
        zoo.convert(folder / "ours" / tag, folder / tag, to=layout)
        theirs = transformers.AutoModel.from_pretrained(folder / tag).eval()
        batch = tokenizer(given)
        with torch.no_grad():
            mine, other = ours(**batch).last_hidden_state, theirs(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        worst = max(worst, apart(mine[real], other[real]))
    return worst


@check("transformers", reads=False, trained=True)
def trained_in(folder: Path) -> float:
    """MiniLM, and ALBERT and BERT for chemical reactions, from the packages' own folders: last states."""
    import transformers

    from zoo.checkpoints.locate import locate

    classes = {
        "minilm-l6-h384.all-minilm-l6-v2": "Bert",
        "albert-rxn.rxnmapper": "Albert",
        "bert-rxn.pretrained": "Bert",
    }
    worst = 0.0
    for tag, name in classes.items():
        there = str(locate(tag)[0])
        config = getattr(transformers, f"{name}Config").from_json_file(os.path.join(there, "config.json"))
        theirs = getattr(transformers, f"{name}Model").from_pretrained(there, config=config).eval()
        batch = zoo.tokenizer(tag)(SENTENCES if "minilm" in tag else [REACTION])
        with torch.no_grad():
            mine = zoo.create(tag, pretrained=True).eval()(**batch).last_hidden_state
            other = theirs(**batch).last_hidden_state
        real = batch["attention_mask"].bool()
        worst = max(worst, apart(mine[real], other[real]))
    return worst


# --- sentence-transformers ---


@check("sentence-transformers", reads=True)
def encoders_out(folder: Path) -> float:
    """A sentence encoder with each pooling, normalized and not: vectors of 30 unusual texts."""
    from sentence_transformers import SentenceTransformer

    worst = 0.0
    for pooling in ("mean", "max", "cls"):
        for normalize in (True, False):
            ours, tokenizer = encoder(pooling=pooling, normalize=normalize), word_pieces()
            there = written(ours, folder / f"{pooling} {normalize}", "hf-bert", tokenizer)
            theirs = SentenceTransformer(str(there), device="cpu").encode(ODD, convert_to_tensor=True)
            with torch.no_grad():
                worst = max(worst, apart(ours(**tokenizer(ODD)).embedding, theirs))
    return worst


@check("sentence-transformers", reads=False)
def encoders_in(folder: Path) -> float:
    """A sentence encoder that it saved: pooling, length, vectors of 30 unusual texts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers import models as modules

    written(encoder(), folder, "hf-bert")
    worst = 0.0
    for pooling in ("mean", "max", "cls"):
        words = modules.Transformer(str(folder / "theirs"), max_seq_length=9)
        parts = [words, modules.Pooling(8, pooling_mode=pooling), modules.Normalize()]
        theirs = SentenceTransformer(modules=parts, device="cpu")
        theirs.save(str(folder / pooling))
        ours, tokenizer = zoo.load(folder / pooling, task="sentence-embedding"), zoo.tokenizer(folder / pooling)
        assert (ours.options["pooling"], ours.options["normalize"]) == (pooling, True)
        assert tokenizer.max_length == 9
        with torch.no_grad():
            worst = max(worst, apart(ours(**tokenizer(ODD)).embedding, theirs.encode(ODD, convert_to_tensor=True)))
    return worst


@check("sentence-transformers", reads=True, trained=True)
def minilm_out(folder: Path) -> float:
    """all-MiniLM-L6-v2 after `zoo convert --to hf-bert`: vectors."""
    from sentence_transformers import SentenceTransformer

    tag = "minilm-l6-h384.all-minilm-l6-v2"
    ours, tokenizer = zoo.create(tag, pretrained=True, task="sentence-embedding").eval(), zoo.tokenizer(tag)
    zoo.save(ours, folder / "ours", tokenizer)
    zoo.convert(folder / "ours", folder / "theirs", to="hf-bert")
    theirs = SentenceTransformer(str(folder / "theirs"), device="cpu").encode(SENTENCES + ODD, convert_to_tensor=True)
    with torch.no_grad():
        return apart(ours(**tokenizer(SENTENCES + ODD)).embedding, theirs)


@check("sentence-transformers", reads=False, trained=True)
def minilm_in(folder: Path) -> float:
    """all-MiniLM-L6-v2 as it saved it anew: vectors."""
    from sentence_transformers import SentenceTransformer

    from zoo.checkpoints.locate import locate

    theirs = SentenceTransformer(str(locate("minilm-l6-h384.all-minilm-l6-v2")[0]), device="cpu")
    theirs.save(str(folder / "theirs"))
    ours, tokenizer = zoo.load(folder / "theirs", task="sentence-embedding"), zoo.tokenizer(folder / "theirs")
    with torch.no_grad():
        return apart(ours(**tokenizer(SENTENCES)).embedding, theirs.encode(SENTENCES, convert_to_tensor=True))


# --- adapters of peft and adapters ---

IDS = torch.arange(5, 13).reshape(2, 4)


def _base(folder: Path) -> tuple[Any, Any]:
    """A BERT of ours, and the same in transformers."""
    ours = shaken(tiny())
    return ours, _reload(written(ours, folder, "hf-bert"))


@torch.no_grad()
def _states(ours: Any, theirs: Any) -> float:
    return apart(ours(IDS).last_hidden_state, theirs(IDS).last_hidden_state)


@check("peft", reads=True)
def peft_out(folder: Path) -> float:
    """LoRA, DoRA and IA3: last states."""
    import peft

    worst = 0.0
    for name, technique in {
        "lora": zoo.LoRA(rank=2),
        "dora": zoo.LoRA(rank=2, dora=True),
        "ia3": zoo.IA3(),
    }.items():
        ours, theirs = _base(folder / name)
        _adapted(ours, technique)
        save_adapter(ours, folder / name / "adapter", library="peft")
        worst = max(worst, _states(ours, peft.PeftModel.from_pretrained(theirs, str(folder / name / "adapter")).eval()))
    return worst


@torch.no_grad()
def _adapted(model: Any, technique: Any) -> None:
    """Put a technique on, its own tensors random."""
    generator = torch.Generator().manual_seed(2)
    plain = model(IDS).last_hidden_state
    before = {id(parameter) for parameter in model.parameters()}
    zoo.apply(model, technique)
    for parameter in model.parameters():
        if id(parameter) not in before:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    assert apart(model.eval()(IDS).last_hidden_state, plain) > 1e-2


def _reload(folder: Path) -> Any:
    import transformers

    return transformers.AutoModel.from_pretrained(folder).eval()


@check("peft", reads=False)
def peft_in(folder: Path) -> float:
    """LoRA, DoRA, IA3 and a prefix that it saved: last states."""
    import peft

    configs = {
        "lora": peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False),
        "rslora": peft.LoraConfig(r=2, target_modules=["query"], init_lora_weights=False, use_rslora=True),
        "dora": peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, use_dora=True),
        "ia3": peft.IA3Config(
            target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"],
            init_ia3_weights=False,
        ),
        "prefix": peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3),
    }  # fmt: skip
    worst = 0.0
    for name, config in configs.items():
        ours, theirs = _base(folder / name)
        torch.manual_seed(0)
        theirs = peft.get_peft_model(theirs, config).eval()
        theirs.save_pretrained(str(folder / name / "adapter"))
        ours = load_adapter(ours, folder / name / "adapter")
        worst = max(worst, _states(ours.eval(), theirs))
    return worst


@check("adapters", reads=True)
def adapters_out(folder: Path) -> float:
    """A bottleneck adapter, a LoRA and a prefix, by `load_adapter`, both kinds of files: last states."""
    import adapters

    techniques = {
        "bottleneck": zoo.BottleneckAdapter(reduction=2, name="mine"),
        "lora": zoo.LoRA(rank=2, name="mine"),
        "prefix": zoo.PrefixTuning(length=3, bottleneck=None, name="mine"),
    }
    worst = 0.0
    for name, technique in techniques.items():
        ours, _ = _base(folder / name)
        _adapted(ours, technique)
        save_adapter(ours, folder / name / "adapter", library="adapters")
        for safe in (False, True):
            theirs = _reload(folder / name / "theirs")
            adapters.init(theirs)
            theirs.load_adapter(str(folder / name / "adapter"), set_active=True, use_safetensors=safe)
            worst = max(worst, _states(ours, theirs.eval()))
    return worst


@check("adapters", reads=False)
def adapters_in(folder: Path) -> float:
    """Bottleneck adapters, LoRA, IA3 and prefix that it saved, both kinds of files: last states."""
    import adapters

    worst = 0.0
    for name in (
        "seq_bn[reduction_factor=2]",
        "par_bn[reduction_factor=2]",
        "lora[r=2]",
        "ia3",
        "prefix_tuning[prefix_length=3]",
    ):
        for safe in (False, True)[: 1 if "prefix" in name else 2]:  # it can't save a prefix as safetensors
            there = folder / f"{name} {safe}"
            ours, theirs = _base(there)
            adapters.init(theirs)
            torch.manual_seed(0)
            theirs.add_adapter("theirs", config=name)
            theirs.set_active_adapters("theirs")
            with torch.no_grad():
                for key, parameter in theirs.named_parameters():
                    if "theirs" in key:
                        parameter.add_(0.1 * torch.randn(parameter.shape))
            theirs.adapter_to("theirs", "cpu")
            theirs.save_adapter(str(there / "adapter"), "theirs", use_safetensors=safe)
            worst = max(worst, _states(load_adapter(ours, there / "adapter").eval(), theirs.eval()))
    return worst


# --- runtimes ---


def _exported(folder: Path, trained: bool) -> tuple[Any, Any, Path]:
    tag = "minilm-l6-h384.all-minilm-l6-v2"
    if trained:
        ours, tokenizer = zoo.create(tag, pretrained=True, task="sentence-embedding").eval(), zoo.tokenizer(tag)
    else:
        ours, tokenizer = encoder(), word_pieces()
    zoo.export(ours, folder / "model.onnx")
    return ours, tokenizer, folder / "model.onnx"


def _against_onnx(ours: Any, tokenizer: Any, run: Callable[[dict[str, Any]], Any]) -> float:
    batch = tokenizer(SENTENCES)
    with torch.no_grad():
        return apart(ours(**batch).embedding, run({name: x.numpy() for name, x in batch.items()}))


@check("onnxruntime", reads=True)
def onnxruntime_out(folder: Path) -> float:
    """A sentence encoder by `zoo.export`: vectors."""
    return _onnxruntime(folder, False)


@check("onnxruntime", reads=True, trained=True)
def minilm_onnxruntime(folder: Path) -> float:
    """all-MiniLM-L6-v2 by `zoo.export`: vectors."""
    return _onnxruntime(folder, True)


def _onnxruntime(folder: Path, trained: bool) -> float:
    import onnxruntime

    ours, tokenizer, path = _exported(folder, trained)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return _against_onnx(ours, tokenizer, lambda batch: session.run(["embedding"], batch)[0])


@check("openvino", reads=True, slow=True)
def openvino_out(folder: Path) -> float:
    """A sentence encoder by `zoo.export`: vectors."""
    return _openvino(folder, False)


@check("openvino", reads=True, trained=True)
def minilm_openvino(folder: Path) -> float:
    """all-MiniLM-L6-v2 by `zoo.export`: vectors."""
    return _openvino(folder, True)


def _openvino(folder: Path, trained: bool) -> float:
    import openvino

    ours, tokenizer, path = _exported(folder, trained)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", exact)
    return _against_onnx(ours, tokenizer, lambda batch: compiled(batch)["embedding"])


@check("ctranslate2", reads=True, slow=True)
def ctranslate2_out(folder: Path) -> float:
    """A BERT's folder by its converter for transformers: last states."""
    return _ctranslate2(shaken(tiny()), word_pieces(), [TEXTS[0]], folder)


@check("ctranslate2", reads=True, trained=True)
def minilm_ctranslate2(folder: Path) -> float:
    """all-MiniLM-L6-v2's folder by its converter for transformers: last states."""
    tag = "minilm-l6-h384.all-minilm-l6-v2"
    return _ctranslate2(zoo.create(tag, pretrained=True).eval(), zoo.tokenizer(tag), SENTENCES[:1], folder)


def _ctranslate2(ours: Any, tokenizer: Any, texts: list[str], folder: Path) -> float:
    import ctranslate2

    there = written(ours, folder, "hf-bert", tokenizer)
    ctranslate2.converters.TransformersConverter(str(there)).convert(str(folder / "made"))
    batch = tokenizer(texts)
    theirs = ctranslate2.Encoder(str(folder / "made"), device="cpu").forward_batch(batch["input_ids"].tolist())
    with torch.no_grad():
        return apart(ours(**batch).last_hidden_state, torch.from_numpy(_array(theirs.last_hidden_state)))


def _array(view: Any) -> Any:
    import numpy

    return numpy.array(view)


@check("optimum-onnx", reads=True, slow=True)
def optimum_out(folder: Path) -> float:
    """A classifier's folder, exported by it and run in onnxruntime: labels, logits."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    ours, tokenizer = classifier(), word_pieces()
    there = written(ours, folder, "hf-bert", tokenizer)
    theirs = ORTModelForSequenceClassification.from_pretrained(there, export=True)
    assert theirs.config.id2label == dict(enumerate(LABELS))
    return both(ours, theirs, tokenizer, AutoTokenizer.from_pretrained(there))


@check("optimum-onnx", reads=False, slow=True)
def optimum_in(folder: Path) -> float:
    """The .onnx that it saved of a classifier: logits."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    ours, tokenizer = classifier(), word_pieces()
    there = written(ours, folder, "hf-bert", tokenizer)
    theirs = ORTModelForSequenceClassification.from_pretrained(there, export=True)
    theirs.save_pretrained(folder / "onnx")
    config = json.loads((folder / "onnx" / "config.json").read_text())
    again = zoo.load(folder / "onnx" / "model.onnx", config=config, task="sequence-classification")
    return both(again, theirs, tokenizer, AutoTokenizer.from_pretrained(there))


# --- training ---


@check("accelerate", reads=True, slow=True)
def accelerate_out(folder: Path) -> float:
    """A model's folder of `zoo.save`, whole and in shards, by `load_checkpoint_in_model`: last states."""
    import accelerate

    ours, worst = shaken(tiny()), 0.0
    for name, size in (("whole", None), ("shards", 2000)):
        zoo.save(ours, folder / name, shard_size=size)
        theirs = tiny(seed=5).eval()
        accelerate.load_checkpoint_in_model(theirs, str(folder / name), strict=True)
        worst = max(worst, _states(ours, theirs))
    return worst


@check("accelerate", reads=False, slow=True)
def accelerate_in(folder: Path) -> float:
    """A BERT of transformers that `Accelerator.save_model` wrote, whole and in shards: logits."""
    import accelerate
    import transformers

    ours = classifier()
    there = written(ours, folder, "hf-bert")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(there).eval()
    accelerator, worst = accelerate.Accelerator(cpu=True), 0.0
    for name, size in (("whole", "1GB"), ("shards", "2KB")):
        accelerator.save_model(accelerator.prepare(theirs), str(folder / name), max_shard_size=size)
        theirs.config.save_pretrained(folder / name)
        again = zoo.load(folder / name, task="sequence-classification")
        with torch.no_grad():
            worst = max(worst, apart(again(IDS).logits, theirs(IDS).logits))
    return worst


@check("lightning", reads=False, slow=True)
def lightning_in(folder: Path) -> float:
    """A checkpoint of a module around a BERT of transformers, after a step of training: logits."""
    import lightning
    import transformers

    there = written(classifier(), folder, "hf-bert")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = transformers.AutoModelForSequenceClassification.from_pretrained(there)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(batch[0], labels=batch[1]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    module = Module()
    _trained(lightning, module, folder / "model.ckpt")
    config = json.loads((there / "config.json").read_text())
    again = zoo.load(folder / "model.ckpt", config=config, task="sequence-classification")
    with torch.no_grad():
        return apart(again(IDS).logits, module.net.eval()(IDS).logits)


@check("lightning", reads=True, slow=True)
def lightning_out(folder: Path) -> float:
    """A model of the zoo trained a step in a module, its checkpoint read back by the module: logits."""
    import lightning

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = tiny("sequence-classification", labels=LABELS)

        def training_step(self, batch: Any, _: int) -> Any:
            return self.net(batch[0], labels=batch[1]).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), 1e-2)

    module = Module()
    _trained(lightning, module, folder / "model.ckpt")
    again = Module.load_from_checkpoint(folder / "model.ckpt")
    saved = zoo.load(zoo.save(module.net, folder / "saved"))
    with torch.no_grad():
        wanted = module.net.eval()(IDS).logits
        return max(apart(again.net.eval()(IDS).logits, wanted), apart(saved.eval()(IDS).logits, wanted))


def _trained(lightning: Any, module: Any, path: Path) -> None:
    data = torch.utils.data.TensorDataset(IDS, torch.tensor([0, 2]))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", enable_checkpointing=False, default_root_dir=str(path.parent), **quiet
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=2))
    trainer.save_checkpoint(path)


@check("mteb", reads=True, trained=True)
def mteb_out(_: Path) -> float:
    """all-MiniLM-L6-v2 of the zoo as its encoder: the score of a similarity task beside sentence-transformers'."""
    from tests.interop.with_mteb import scores

    ours, theirs = scores()
    return abs(ours - theirs) / abs(theirs)


def checks(slow: bool = True) -> Iterator[Check]:
    """The checks whose library is installed."""
    yield from (each for each in CHECKS if each.installed and (slow or not each.slow))
