"""What the Hugging Face libraries read beside a file's tensors: what the config says of the head, the
tokenizer's files, a sentence encoder's modules.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.checkpoints.checkpoint import Checkpoint
from zoo.checkpoints.files import PROBLEM_TYPES, folder_of
from zoo.checkpoints.locate import shapes_of
from zoo.checkpoints.sentence_modules import ACTIVATIONS, POOLING_KEYS, Layers
from zoo.data.images.files import read_images, write_images
from zoo.errors import ConfigError
from zoo.formats.archive import TORCH_DTYPES as DTYPES
from zoo.formats.archive import dtype_name
from zoo.formats.disk import writing
from zoo.formats.writer import write_tensors
from zoo.inference.search.settings import Search
from zoo.maps.key_map import KeyMap
from zoo.maps.plans import heads_of
from zoo.registry.tasks import TASKS
from zoo.tasks.base import spec_of_class, task_class
from zoo.tokenization import Tokenizer, load_tokenizer
from zoo.tokenization.tokenizer import SAVED_BACKEND

FAST_TOKENIZER = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is
MODULES = {"dense": "Dense", "norm": "LayerNorm", "dropout": "Dropout"}  # a layer's kind -> the module
VOCABULARY_IDS = {
    "pad_token_id": "pad_token_id",
    "decoder_start_token_id": "start_token_id",
    "eos_token_id": "end_token_id",
}
ROLES = ("pad", "cls", "sep", "mask", "unk")


def head_words(checkpoint: Checkpoint, keymap: KeyMap) -> dict[str, object]:
    """What a checkpoint of ours says of its classifier, in the words of a layout: id2label, label2id,
    problem_type. Empty where it holds none, or several.
    """
    blueprint, sizes = checkpoint.blueprint, shapes_of(checkpoint.archive)
    tasks = [head.replace("_", "-") for head in heads_of(sizes) & keymap.heads]
    found = []
    for task in (task for task in tasks if task in TASKS):
        spec = spec_of_class(task, blueprint.model_class)
        told = task_class(spec).options_from(sizes, spec, blueprint.config, blueprint.model_class)
        if "labels" in spec.options and "num_labels" in told:
            said = blueprint.options if task == blueprint.task else checkpoint.hints_for(task)
            found.append((told["num_labels"], said))
    if len(found) != 1:
        return {}
    (number, said), words = found[0], dict[str, object]()
    names = said.get("labels") or [f"LABEL_{label}" for label in range(number)]
    if len(names) != number:
        raise ConfigError(f"{checkpoint.shown} names {len(names)} labels, its head has {number}; mend its config.json")
    words["id2label"] = {str(label): name for label, name in enumerate(names)}
    words["label2id"] = {name: label for label, name in enumerate(names)}
    if said.get("problem_type") is not None:
        words["problem_type"] = next(word for word, own in PROBLEM_TYPES.items() if own == said["problem_type"])
    return {key: value for key, value in words.items() if key in keymap.config.task}


def write_companions(
    checkpoint: Checkpoint, keymap: KeyMap, folder: Path, layers: Layers, dtype: torch.dtype | str | None = None
) -> list[str]:
    """The files beside a converted checkpoint's tensors. ``layers``: those of a sentence encoder, by
    their places; ``dtype``: of their floats, None: as stored. -> remarks on what they can't say.
    """
    if "architectures" not in keymap.config.task:
        return []  # not a layout of those libraries
    source, blueprint = folder_of(checkpoint.source), checkpoint.blueprint
    config = blueprint.config
    longest, notes = getattr(config, "longest", getattr(config, "max_positions", None)), list[str]()
    if source is not None and (source / SAVED_BACKEND).is_file():
        tokenizer = load_tokenizer(source)
        longest = tokenizer.max_length or longest
        segments = "token_type_ids" in blueprint.model_class.inputs and getattr(config, "num_segments", 0) > 1
        unread = () if segments else ("token_type_ids",)
        notes += write_tokenizer(tokenizer, folder, longest, unread)
    elif "input_ids" in blueprint.model_class.inputs:
        notes.append(f"no {SAVED_BACKEND} lies beside the source, so no tokenizer was written")
    if source is not None and "pixel_values" in blueprint.model_class.inputs:
        if (images := read_images(source)) is not None:
            write_images(images, folder)
        else:
            notes.append("nothing beside the source says how it wants its pictures, so that was not written")
    copy_search(checkpoint, folder, back=True)
    own = blueprint.task == "sentence-embedding"
    if options := blueprint.options if own else checkpoint.hints_for("sentence-embedding"):
        write_modules(folder, options, config.hidden_size, longest)
        write_layers(folder, options, config.hidden_size, layers, dtype)
    return notes


def copy_search(checkpoint: Checkpoint, folder: Path, back: bool = False) -> None:
    """The settings of a search beside converted weights, where the model writes and its files say any. ``back``: on
    the way to transformers, which reads ids of the vocabulary there too.
    """
    source, blueprint = folder_of(checkpoint.source), checkpoint.blueprint
    if source is not None and blueprint.model_class.writes and (search := Search.read(source)) != Search():
        ids = {theirs: getattr(blueprint.config, ours, None) for theirs, ours in VOCABULARY_IDS.items()} if back else {}
        search.write(folder, {name: value for name, value in ids.items() if value is not None})


def write_tokenizer(tokenizer: Tokenizer, folder: Path, longest: int | None, unread: Collection[str] = ()) -> list[str]:
    """A tokenizer as transformers reads it: ``tokenizer.json`` and the generic class that takes it as
    it is; for XLM, whose words are made before, its own class and files. unread: what it makes and
    the model does not take: DistilBERT has no argument for segments, XLM adds a token for each.
    """
    step, special = tokenizer.pre_step, tokenizer.special
    tokens = {f"{role}_token": getattr(special, role) for role in ROLES if getattr(special, role) is not None}
    if (special.cls, special.sep) == ("<s>", "</s>"):
        tokens |= {"bos_token": "<s>", "eos_token": "</s>"}
    inputs = [name for name in tokenizer.inputs if name not in unread]
    about: dict[str, Any] = {"tokenizer_class": FAST_TOKENIZER, "model_input_names": inputs, **tokens}
    about["clean_up_tokenization_spaces"] = False
    if longest is not None:
        about["model_max_length"] = longest
    notes = []
    if step.name == "xlm":
        options = step.options()
        vocabulary = tokenizer.backend.get_vocab(with_added_tokens=True)
        _write_json(folder / "vocab.json", vocabulary)
        _write_text(folder / "merges.txt", "".join(f"{merge}\n" for merge in options["merges"]))  # type: ignore[attr-defined]
        about |= {"tokenizer_class": "XLMTokenizer", "bos_token": "<s>"}
        about["do_lowercase_and_remove_accent"] = options["lower_case"]
        if special.cls != "<s>":
            notes.append("the tokenizer's texts begin with </s>, those of transformers with <s>")
    else:
        _write_text(folder / SAVED_BACKEND, tokenizer.backend.to_str())
        if step.name != "none":
            notes.append(
                f"the tokenizer's step {step.name!r} has no place in {SAVED_BACKEND}: transformers does without "
                "it, and gives other ids where the step changes a text"
            )
    _write_json(folder / "special_tokens_map.json", tokens)
    _write_json(folder / "tokenizer_config.json", about)
    return notes


def write_modules(folder: Path, options: Mapping[str, Any], size: int, longest: int | None) -> None:
    """A sentence encoder as sentence-transformers reads it: the model, its pooling, its norm."""
    between = [MODULES[layer["kind"]] for layer in options.get("layers") or ()]
    kinds = ["Transformer", "Pooling", *between, *(["Normalize"] if options.get("normalize", True) else [])]
    modules = [
        {
            "idx": place,
            "name": str(place),
            "path": "" if kind == "Transformer" else f"{place}_{kind}",
            "type": f"sentence_transformers.models.{kind}",
        }
        for place, kind in enumerate(kinds)
    ]
    chosen = options.get("pooling", "mean")
    pooling: dict[str, Any] = {"word_embedding_dimension": size}
    pooling |= {key: own == chosen for own, key in POOLING_KEYS.items()}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling" / "config.json", {**pooling, "pooling_mode_mean_sqrt_len_tokens": False})
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False})


def write_layers(
    folder: Path, options: Mapping[str, Any], width: int, layers: Layers, dtype: torch.dtype | str | None
) -> None:
    """The folders of a sentence encoder's layers behind its pooling."""
    names = {own: name for name, own in ACTIVATIONS.items()}
    for place, layer in enumerate(options.get("layers") or ()):
        kind, size = layer["kind"], layer.get("size", width)
        said: dict[str, Any] = {"norm": {"dimension": width}, "dropout": {"dropout": layer.get("rate", 0.0)}}.get(
            kind, {}
        )
        if kind == "dense":
            named = layer.get("activation", "identity")
            if named not in names:
                raise ConfigError(
                    f"sentence-transformers has no class for the activation {named!r}; it has {', '.join(names)}"
                )
            said = {"in_features": width, "out_features": size, "bias": layer.get("bias", True)}
            said |= {"activation_function": names[named]}
            said |= {"use_residual": True} if layer.get("residual") else {}
        own = folder / f"{place + 2}_{MODULES[kind]}"
        _write_json(own / "config.json", said)
        if tensors := {name: read() for name, read in layers.get(place, {}).items()}:
            wanted = None if dtype is None else DTYPES[dtype_name(dtype)]
            tensors = {name: t.to(wanted) if t.is_floating_point() else t for name, t in tensors.items()}
            write_tensors(own / "model.safetensors", tensors, {"format": "pt"})
        width = size


def _write_json(path: Path, value: object) -> None:
    _write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
