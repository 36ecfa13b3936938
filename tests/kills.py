"""Writers that die at a chosen file operation: a child process whose layer of the operating system
counts, and what is left of a folder then.
"""

from __future__ import annotations

import builtins
import io
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
import torch

import zoo
from zoo.checkpoints.adapters.files import load_adapter, save_adapter
from zoo.tokenization import SpecialTokens, Tokenizer

MOVES = ("replace", "rename", "unlink", "rmdir")
OPERATIONS = (*MOVES, "remove", "mkdir", "link", "ftruncate", "pwrite", "write", "chmod")
IDS = torch.arange(1, 9)[None]


def dies(work: Callable[[], object], at: int, moves: bool = False) -> bool:
    """Do some work in a child that is killed before its file operation number ``at`` (counted from 0;
    ``moves``: those alone that move or remove something) -> whether it came that far.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    try:
        left = [at]

        def counted(call: Any, counts: Callable[..., bool] = lambda *_: True) -> Any:
            def one(*arguments: Any, **options: Any) -> Any:
                if counts(*arguments):
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                return call(*arguments, **options)

            return one

        for name in MOVES if moves else OPERATIONS:
            if hasattr(os, name):
                setattr(os, name, counted(getattr(os, name)))
        if moves:
            work()
            os._exit(0)
        os.open = counted(os.open, lambda path, flags, *_: bool(flags & (os.O_WRONLY | os.O_RDWR)))
        opened = counted(io.open, lambda file, mode="r", *_: not set("wax+").isdisjoint(mode))
        io.open = builtins.open = opened
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


SIZES: dict[str, Any] = {"hidden_size": 8, "num_layers": 2, "intermediate_size": 8, "vocab_size": 20}
SIZES |= {"max_positions": 16}


def tiny(seed: int, **more: Any) -> Any:
    """A small model of its own sizes and activation, so that no two go together in silence."""
    torch.manual_seed(seed)
    other = {"num_heads": 2, "activation": "gelu"} if seed % 2 else {"num_heads": 4, "activation": "relu"}
    return zoo.create("bert-tiny", **{**SIZES, **other, **more}).eval()


def words(*more: str) -> Tokenizer:
    """A tokenizer of these words."""
    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", *more])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(backend, special=SpecialTokens(pad="[PAD]", unk="[UNK]"))


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).last_hidden_state
    return found


class Writer:
    """One way to write a folder, and the way back: model number 0 or 1 into ``place``."""

    def __init__(self, base: Path, write: Callable[[Path, int], object], look: Callable[[Path], torch.Tensor]) -> None:
        self.place, self.old, self._write, self._look = base / "place", base / "alone" / "0", write, look
        self.wanted = []
        for number in (0, 1):
            write(base / "alone" / str(number), number)
            self.wanted.append(look(base / "alone" / str(number)))

    def write(self, number: int) -> None:
        self._write(self.place, number)

    def found(self) -> str:
        """What loads: "0", "1", "refused: why", or "MIXED"."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                got = self._look(self.place)
        except zoo.ZooError as error:
            return f"refused: {error}"
        return next((str(number) for number in (0, 1) if torch.equal(got, self.wanted[number])), "MIXED")

    def left(self) -> list[str]:
        """The names that begin with a dot, as those of what is being written do."""
        places = (self.place.parent, self.place)
        return [file.name for place in places for file in place.glob(".*")]


def writers(base: Path) -> dict[str, Callable[[Path], Writer]]:
    """Every way to write a folder that is read back."""
    models = [tiny(0), tiny(1)]
    for number, model in enumerate(models):
        zoo.save(model, base / f"saved-{number}")
        zoo.convert(base / f"saved-{number}", base / f"theirs-{number}", to="hf-bert")
        zoo.convert(base / f"saved-{number}", base / f"alone-{number}.safetensors", to="hf-bert")

    def adapted(number: int) -> Any:
        model = tiny(1)
        lora = zoo.LoRA(rank=2, alpha=1 + 7 * number)
        zoo.apply(model, lora)
        torch.manual_seed(number)
        for name, tensor in model.named_parameters():
            if ".loras." in name:
                torch.nn.init.normal_(tensor)
        return model

    loras = [adapted(0), adapted(1)]

    def adapter(library: str) -> Callable[[Path], Writer]:
        return lambda place: Writer(
            place,
            lambda folder, number: save_adapter(loras[number], folder, library=library),
            lambda folder: output(load_adapter(tiny(1), folder)),
        )

    def split(folder: Path, number: int) -> None:
        zoo.save(models[number], folder, shard_size=(1500, 900)[number])

    def both(folder: Path, number: int) -> None:
        zoo.save(models[number], folder, shard_size=(None, 1500)[number])

    def back(folder: Path, number: int) -> None:
        zoo.convert(base / f"saved-{number}", folder, to="hf-bert", shard_size=(None, 1500)[number])

    def either(folder: Path, number: int) -> None:
        zoo.convert(base / f"saved-{number}", folder, to="hf-bert") if number else zoo.save(models[number], folder)

    speakers = [words("a", "b"), words("b", "a")]

    def spoken(folder: Path, number: int) -> None:
        zoo.save(models[number], folder, speakers[number])

    encoders = []
    for number, pooling in enumerate(("mean", "cls")):
        model = zoo.create("bert-tiny", task="sentence-embedding", pooling=pooling, **SIZES, num_heads=2)
        encoders.append(zoo.save(model, base / f"encoder-{number}", speakers[number]))

    def encoder(folder: Path, number: int) -> None:
        zoo.convert(encoders[number], folder, to="hf-bert")

    def ids(folder: Path) -> torch.Tensor:
        return torch.tensor(zoo.tokenizer(folder).encode("a b a").ids)

    def vector(folder: Path) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = zoo.load(folder, task="sentence-embedding")(IDS).embedding
        return found

    def states(folder: Path) -> torch.Tensor:
        return output(zoo.load(folder))

    def forward(folder: Path, number: int) -> None:
        zoo.convert(base / f"theirs-{number}", folder)

    return {
        "save": lambda p: Writer(p, lambda folder, number: zoo.save(models[number], folder), states),
        "save with a tokenizer": lambda p: Writer(p, spoken, ids),
        "save in shards": lambda p: Writer(p, split, states),
        "save in one file and in shards": lambda p: Writer(p, both, states),
        "convert": lambda p: Writer(p, forward, states),
        "convert to": lambda p: Writer(p, back, states),
        "convert a sentence encoder to": lambda p: Writer(p, encoder, vector),
        "save and convert to": lambda p: Writer(p, either, states),
        "save_adapter": adapter("zoo"),
        "save_adapter peft": adapter("peft"),
        "save_adapter adapters": adapter("adapters"),
    }


def deaths(writer: Writer, moves: bool = False) -> Iterator[tuple[int, str]]:
    """Kill a writer that replaces model 0 by model 1 at each of its file operations in turn -> the
    number of the operation, and what is found then; the folder is written whole again after each.
    """
    at = 0
    while True:
        shutil.rmtree(writer.place, ignore_errors=True)
        shutil.copytree(writer.old, writer.place)
        died = dies(lambda: writer.write(1), at, moves)
        yield at, writer.found()
        writer.write(1)
        assert writer.found() == "1", f"after the kill at {at} a whole write gives {writer.found()}"
        assert not writer.left(), writer.left()
        if not died:
            return
        at += 1
