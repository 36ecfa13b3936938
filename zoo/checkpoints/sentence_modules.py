"""A sentence encoder's folder as sentence-transformers writes it: modules.json, which lists the model,
its pooling and what follows, and a folder for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.checkpoints.files import folder_of, json_value, read_json
from zoo.errors import CheckpointError
from zoo.formats.archive import Archive, Entry, TensorInfo
from zoo.formats.disk import safe_path
from zoo.formats.opening import open_archive
from zoo.tasks.sentences import EMBEDDING_HEAD

POOLING_KEYS = {  # a sentence encoder's pooling -> its switch in 1_Pooling/config.json
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "cls": "pooling_mode_cls_token",
}
ACTIVATIONS = {  # the class that a dense layer names -> our activation
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
DENSE_KEYS = {"in_features", "out_features", "bias", "activation_function", "use_residual"}
NAMED_KEYS = ("module_input_name", "module_output_name")  # which of the vectors a module reads and writes
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Modules:
    """The options of the task that modules.json describes, and the folder of each of its ``layers``."""

    options: dict[str, Any]
    folders: tuple[Path, ...]


def embedding_options(source: Any) -> dict[str, Any]:
    """How a sentence encoder's folder says that vectors are made; empty where it says nothing."""
    found = read_modules(source)
    return {} if found is None else found.options


def read_modules(source: Any) -> Modules | None:
    """What modules.json beside a checkpoint says, None where there is none. Refused where it names
    what the task has no word for.
    """
    folder = folder_of(source)
    if folder is None or not (folder / "modules.json").is_file():
        return None
    written = json_value(folder / "modules.json")
    try:
        modules = [(str(module["type"]).rsplit(".", 1)[-1], str(module.get("path", ""))) for module in written]
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / 'modules.json'} does not list modules with a type and a path: {error!r}"
        ) from error
    kinds = [kind for kind, _ in modules]
    between = kinds[2:-1] if kinds[2:] and kinds[-1] == "Normalize" else kinds[2:]
    if kinds[:2] not in (["Transformer"], ["Transformer", "Pooling"]) or set(between) - set(LAYERS):
        raise _refusal(folder, f"has the modules {', '.join(kinds) or 'none'}")
    options: dict[str, Any] = {"normalize": kinds[-1] == "Normalize"}
    places = [folder / safe_path(path) if path else folder for _, path in modules]
    if len(kinds) > 1:
        options["pooling"] = _pooling(folder, read_json(places[1] / "config.json"))
    layers = [LAYERS[kind](place) for kind, place in zip(between, places[2:], strict=False)]
    for kind, place in zip(between, places[2:], strict=False):
        if kind != "Dropout" and weights_of(place) is None:
            raise CheckpointError(f"{place} holds none of {', '.join(WEIGHTS)}, the weights of a {kind} layer")
    if layers:
        options["layers"] = layers
    return Modules(options, tuple(places[2 : 2 + len(between)]))


def prompt_note(source: Any) -> str:
    """What to say where sentence-transformers puts words in front of each text by itself, which no
    tokenizer does.
    """
    folder = folder_of(source)
    path = None if folder is None else folder / "config_sentence_transformers.json"
    said = read_json(path) if path is not None and path.is_file() else {}
    name, prompts = said.get("default_prompt_name"), said.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, Mapping) and isinstance(name, str) else None
    if not prompt:
        return ""
    return (
        f"sentence-transformers puts {prompt!r} in front of each text (its prompt {name!r}); do the same to get its "
        "vectors"
    )


def refuse_model_elsewhere(source: Any) -> None:
    """Refuse a folder whose modules.json names another folder for the model, as old ones do."""
    folder = folder_of(source)
    if folder is None or not Path(source).is_dir() or not (folder / "modules.json").is_file():
        return
    written = json_value(folder / "modules.json")
    first = written[0] if isinstance(written, list) and written else None
    path = first.get("path") if isinstance(first, Mapping) else None
    if isinstance(path, str) and path and (folder / safe_path(path)).is_dir():
        raise CheckpointError(
            f"{folder} is a sentence encoder whose model lies in its folder {path!r}.\n"
            f"Move the files of {path} up beside modules.json and let its path there be empty; or load the model "
            f"alone: zoo.load({str(folder / path)!r})"
        )


def _refusal(folder: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{folder}: the sentence encoder {what}; the zoo runs Transformer, Pooling, then any of "
        f"{', '.join(LAYERS)}, then Normalize or none.\n"
        "To load the model below without them, build it by its name: zoo.create(NAME, pretrained=FOLDER)"
    )


def _pooling(folder: Path, said: Mapping[str, Any]) -> str:
    if (named := said.get("pooling_mode")) is not None:  # as sentence-transformers writes it from 5.4 on
        chosen = [str(mode) for mode in named] if isinstance(named, list) else [str(named)]
    else:
        names = {key: mode for mode, key in POOLING_KEYS.items()}
        switched = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
        chosen = [names.get(key, key) for key in switched]
    if len(chosen) != 1 or chosen[0] not in POOLING_KEYS:
        raise CheckpointError(f"{folder}: pooling must be exactly one of {', '.join(POOLING_KEYS)}, got {chosen}")
    return chosen[0]


def _dense(folder: Path) -> dict[str, Any]:
    said = read_json(folder / "config.json")
    for key in NAMED_KEYS:
        if said.get(key) not in (None, "sentence_embedding"):
            raise _refusal(folder.parent, f"has a dense layer with {key} {said[key]!r}, not 'sentence_embedding'")
    if strange := sorted(set(said) - DENSE_KEYS - set(NAMED_KEYS)):
        raise _refusal(folder.parent, f"has a dense layer with {strange[0]!r}: {said[strange[0]]!r}")
    named = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    if named not in ACTIVATIONS:
        raise _refusal(folder.parent, f"has a dense layer with the activation {named!r}")
    size = said.get("out_features")
    if type(size) is not int or size < 1:
        raise CheckpointError(f"{folder / 'config.json'}: out_features must be a whole number above 0, got {size!r}")
    layer = {"kind": "dense", "size": size, "activation": ACTIVATIONS[named], "bias": said.get("bias", True) is True}
    return {**layer, "residual": True} if said.get("use_residual") else layer


def _norm(folder: Path) -> dict[str, Any]:
    return {"kind": "norm"}


def _dropout(folder: Path) -> dict[str, Any]:
    rate = read_json(folder / "config.json").get("dropout", 0.2)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise CheckpointError(f"{folder / 'config.json'}: dropout must lie between 0 and 1, got {rate!r}")
    return {"kind": "dropout", "rate": float(rate)}


LAYERS = {"Dense": _dense, "LayerNorm": _norm, "Dropout": _dropout}


# --- their weights


def weights_of(folder: Path) -> Path | None:
    """The file of a module's tensors, None where it has none."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def with_modules(archive: Archive, source: Any) -> tuple[Archive, dict[str, str]]:
    """An archive with the tensors of the modules beside it, and our names of those. What the task has
    no word for is left to whoever asks for the task.
    """
    try:
        found = read_modules(source)
    except CheckpointError:
        found = None
    entries: dict[str, Entry] = {}
    ours: dict[str, str] = {}
    files: list[Path] = []
    for place, folder in enumerate(found.folders if found else ()):
        if (file := weights_of(folder)) is None:
            continue
        files.append(file)
        with open_archive(file) as part:
            for name, entry in part.entries.items():
                stored = f"{place}_{folder.name}/{name}"
                entries[stored] = Entry(TensorInfo(stored, entry.info.shape, entry.info.dtype), entry.load)
                ours[stored] = f"heads.{EMBEDDING_HEAD}.{place}.{name}"
    if not entries:
        return archive, {}
    joined = Archive(
        archive.path,
        archive.format,
        {**archive.entries, **entries},
        metadata=archive.metadata,
        refused=archive.refused,
        groups=archive.groups,
        group=archive.group,
        files=(*archive.files, *files),
    )
    return joined, ours


Layers = Mapping[int, Mapping[str, Callable[[], Tensor]]]  # place -> name -> what reads the tensor


def without_layers(archive: Archive) -> tuple[Archive, Layers]:
    """An archive of ours without the layers of a sentence encoder, and those by their places: what
    reads each of their tensors.
    """
    layers: dict[int, dict[str, Callable[[], Tensor]]] = {}
    entries = {}
    for name, entry in archive.entries.items():
        if name.startswith(f"heads.{EMBEDDING_HEAD}."):
            place, _, own = name.removeprefix(f"heads.{EMBEDDING_HEAD}.").partition(".")
            layers.setdefault(int(place), {})[own] = partial(archive.read, name)
        else:
            entries[name] = entry
    kept = Archive(archive.path, archive.format, entries, metadata=archive.metadata, files=archive.files)
    return (kept if layers else archive), layers
