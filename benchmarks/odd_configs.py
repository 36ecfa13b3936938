"""Every odd value at every place of a config.json, ours and another library's, by every way in: how many end in
an error that is not the zoo's.

    python -m benchmarks.odd_configs

About four minutes on two cores. Prints each raw error with the place in the library, then the counts.
"""

from __future__ import annotations

import collections
import json
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zoo

ODD: tuple[Any, ...] = (None, True, -1, 0, 3, 2.5, 1e308, float("nan"), "x", "", [], [1], ["x"], [None], {}, {"x": 1})
ODD += ([{}], [[1]], 2**62, 10**25, 10**400, "é" * 9)
TEXTS = ("", "{", "[]", "3", "null", "\x00", "[" * 100_000, '{"a":' * 3000, '{"zoo_format": ' + "1" * 5000 + "}")
TEXTS += tuple(f'{{"zoo_format": {value}}}' for value in ("1", '"x"', "null", "NaN", "[1]", "true"))
Place = tuple[str | int, ...]
SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 12,
    "max_positions": 16,
}


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Where a value could stand: the whole, and each part of it."""
    yield at
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*at, key))


def put(whole: Any, at: Place, value: Any) -> Any:
    """A copy with another value at a place."""
    if not at:
        return value
    copied = json.loads(json.dumps(whole))
    holder = copied
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = value
    return copied


def without(whole: Any, at: Place) -> Any:
    copied = put(whole, at, None)
    holder = copied
    for key in at[:-1]:
        holder = holder[key]
    del holder[at[-1]]
    return copied


def ways(folder: Path, out: Path) -> dict[str, Callable[[], Any]]:
    """Every way in to a folder."""
    return {
        "load": lambda: zoo.load(folder),
        "verify": lambda: zoo.verify(folder),
        "inspect": lambda: zoo.inspect(folder),
        "convert": lambda: zoo.convert(folder, out / "ours"),
        "convert --to": lambda: zoo.convert(folder, out / "theirs", to="hf-bert"),
        "tokenizer": lambda: zoo.tokenizer(folder),
        "create": lambda: zoo.create("bert-base", pretrained=folder),
        "another task": lambda: zoo.load(folder, task="sentence-embedding"),
    }


def texts_of(whole: Any) -> Iterator[tuple[str, str]]:
    yield from (("text", text) for text in TEXTS)
    for place in places(whole):
        yield from (
            (f"{place}={odd!r:.20}" if odd != 10**400 else f"{place}=10**400", _json(whole, place, odd)) for odd in ODD
        )
        if place:
            yield f"{place} left out", json.dumps(without(whole, place))


def _json(whole: Any, place: Place, odd: Any) -> str:
    return json.dumps(put(whole, place, odd))


def main() -> None:
    warnings.simplefilter("ignore")
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = zoo.create("bert-base", task="sequence-classification", num_labels=3, **SIZES)
        zoo.convert(zoo.save(plain, folder / "plain"), folder / "theirs", to="hf-bert")
        zoo.save(zoo.apply(plain, zoo.LoRA(rank=2)), folder / "ours")
        for whose in ("ours", "theirs"):
            config = folder / whose / "config.json"
            for what, text in texts_of(json.loads(config.read_text())):
                config.write_text(text)
                for way, call in ways(folder / whose, folder).items():
                    try:
                        call()
                    except zoo.ZooError:
                        counts["refused"] += 1
                    except Exception as error:
                        counts["raw"] += 1
                        where = [
                            frame for frame in traceback.extract_tb(error.__traceback__) if "zoo" in frame.filename
                        ][-1]
                        place = f"{Path(where.filename).name}:{where.lineno}"
                        print(f"{whose} {way} {what}: {type(error).__name__} in {place}")
                    else:
                        counts["taken"] += 1
    print(dict(counts))


if __name__ == "__main__":
    main()
