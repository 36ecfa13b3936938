"""What is compared: each side loads a folder and encodes one batch. Nothing heavy is imported
before a side is built.

A side takes arrays: ``input_ids`` (batch, length) int64, ``attention_mask`` (batch, length) int64,
1 = real, and for models of pictures ``visual_embeds`` (batch, regions, width) float32 and
``visual_attention_mask``. It gives the last hidden states, (batch, length, hidden) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy

Arrays = Mapping[str, numpy.ndarray]
Run = Callable[[Arrays], Any]
THREADS = 2


class Side:
    """One way to run a model. ``prepare`` is not timed, ``run`` is, ``states`` turns its result
    into an array.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self, arrays: Arrays) -> Any:
        """Inputs as this side wants them."""
        return arrays

    def run(self, given: Any) -> Any:
        raise NotImplementedError

    def states(self, result: Any) -> numpy.ndarray:
        raise NotImplementedError


class TorchSide(Side):
    """Sides that are torch modules called with tensors by name."""

    model: Any

    def prepare(self, arrays: Arrays) -> Any:
        import torch

        return {name: torch.from_numpy(value) for name, value in arrays.items()}

    def run(self, given: Any) -> Any:
        import torch

        with torch.inference_mode():
            return self.model(**given)

    def states(self, result: Any) -> numpy.ndarray:
        words = getattr(result, "text", result)  # of several streams, the text's
        found = words.language_output if hasattr(words, "language_output") else words.last_hidden_state
        return found.float().numpy()


class Zoo(TorchSide):
    """This library as `zoo.load` gives it, or prepared by `zoo.optimize`."""

    def __init__(self, folder: Path, dtype: str = "", compiled: bool = False) -> None:
        import torch

        import zoo

        super().__init__(folder)
        torch.set_num_threads(THREADS)
        self.model = zoo.load(folder.parent / "zoo").eval()
        if dtype:
            self.model = zoo.optimize(self.model, dtype=dtype, compile=compiled)
        elif compiled:
            self.model = torch.compile(self.model)

    def prepare(self, arrays: Arrays) -> Any:
        given = super().prepare(arrays)
        if "langs" in given:
            given["language_ids"] = given.pop("langs")
        theirs = {"visual_embeds": "visual_features", "visual_feats": "visual_features", "visual_pos": "visual_boxes"}
        theirs |= {"visual_attention_mask": "visual_mask"}
        given = {theirs.get(name, name): value for name, value in given.items()}
        return given


class Transformers(TorchSide):
    """`transformers`, with scaled_dot_product_attention wherever the model has it."""

    def __init__(self, folder: Path, dtype: str = "float32", compiled: bool = False) -> None:
        import torch
        import transformers

        super().__init__(folder)
        torch.set_num_threads(THREADS)
        config = transformers.AutoConfig.from_pretrained(folder)
        name = "VisualBertModel" if config.model_type == "visual_bert" else "AutoModel"
        model = getattr(transformers, name).from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.eval()
        self.dtype = getattr(torch, dtype)
        if compiled:
            self.model = torch.compile(self.model)

    def prepare(self, arrays: Arrays) -> Any:
        given = super().prepare(arrays)
        return {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in given.items()}


class OnnxRuntime(Side):
    """ONNX Runtime; int8 is dynamic, per channel."""

    def __init__(self, folder: Path, int8: bool = False) -> None:
        import onnxruntime

        super().__init__(folder)
        path = onnx_file(folder)
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            target = path.with_name("int8.onnx")
            if not target.exists():
                quantize_dynamic(path, target, per_channel=True, weight_type=QuantType.QInt8)
            path = target
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.names = [given.name for given in self.session.get_inputs()]

    def prepare(self, arrays: Arrays) -> Any:
        return {name: arrays[name] for name in self.names}

    def run(self, given: Any) -> Any:
        return self.session.run(None, given)

    def states(self, result: Any) -> numpy.ndarray:
        return result[0]


class OpenVino(Side):
    """OpenVINO from the same ONNX file."""

    def __init__(self, folder: Path, dtype: str = "f32") -> None:
        import openvino

        super().__init__(folder)
        core = openvino.Core()
        settings = {"INFERENCE_PRECISION_HINT": dtype, "INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
        self.model = core.compile_model(core.read_model(onnx_file(folder)), "CPU", settings)
        self.names = [given.get_any_name() for given in self.model.inputs]

    def prepare(self, arrays: Arrays) -> Any:
        return {name: arrays[name] for name in self.names}

    def run(self, given: Any) -> Any:
        return self.model(given)

    def states(self, result: Any) -> numpy.ndarray:
        return result[0]


class CTranslate2(Side):
    """CTranslate2's encoder, fed without padding, as it wants it."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        import ctranslate2

        super().__init__(folder)
        target = folder.parent / "ctranslate2"
        if not target.exists():
            ctranslate2.converters.TransformersConverter(str(folder)).convert(str(target))
        self.model = ctranslate2.Encoder(str(target), compute_type=dtype, intra_threads=THREADS)

    def prepare(self, arrays: Arrays) -> Any:
        lengths = arrays["attention_mask"].sum(1)
        return [row[:n].tolist() for row, n in zip(arrays["input_ids"], lengths, strict=True)]

    def run(self, given: Any) -> Any:
        return self.model.forward_batch(given)

    def states(self, result: Any) -> numpy.ndarray:
        return numpy.array(result.last_hidden_state)


def onnx_file(folder: Path) -> Path:
    """The model as ONNX, written once from `transformers`' module."""
    path = folder.parent / "onnx" / "model.onnx"
    if path.exists():
        return path
    import torch
    import transformers

    path.parent.mkdir(exist_ok=True)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch, length = torch.export.Dim("batch", min=2, max=4096), torch.export.Dim("length", min=2, max=512)
    ids = torch.ones(3, 7, dtype=torch.int64)

    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    shapes = {"input_ids": {0: batch, 1: length}, "attention_mask": {0: batch, 1: length}}
    torch.onnx.export(Named(), (ids, torch.ones_like(ids)), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    return path


SIDES: dict[str, Callable[[Path], Side]] = {
    "zoo": Zoo,
    "zoo optimized": lambda folder: Zoo(folder, "float32"),
    "zoo compiled": lambda folder: Zoo(folder, compiled=True),
    "zoo bfloat16": lambda folder: Zoo(folder, "bfloat16"),
    "zoo int8": lambda folder: Zoo(folder, "int8", compiled=True),
    "transformers": Transformers,
    "transformers compiled": lambda folder: Transformers(folder, compiled=True),
    "transformers bfloat16": lambda folder: Transformers(folder, "bfloat16"),
    "onnxruntime": OnnxRuntime,
    "onnxruntime int8": lambda folder: OnnxRuntime(folder, int8=True),
    "openvino": OpenVino,
    "openvino bfloat16": lambda folder: OpenVino(folder, "bf16"),
    "ctranslate2": CTranslate2,
    "ctranslate2 int8": lambda folder: CTranslate2(folder, "int8_float32"),
}
"""Every side by name; a name without a number format is float32."""
