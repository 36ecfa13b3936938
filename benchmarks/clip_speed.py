"""CLIP beside transformers: texts and pictures a second, with the same weights.

    python -m benchmarks.clip_speed [--variant clip-vit-b-32] [--rows 32] [--repeats 9] [--layers N] [--json FILE]

Random weights of the variant's size, carried over by the map ``hf-clip``. Texts are 77 tokens, once all of them real
and once ragged (5 to 24 real tokens, as captions are, the rest zeros behind the end token). Every side computes the
features of a batch before any goes on to the next; medians count. Vectors are compared before anything is timed. Needs
transformers. ``--layers``: fewer blocks, to try it out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import zoo
from benchmarks.timing import interleaved, machine, table
from zoo.formats.archive import Info
from zoo.maps import layouts

LENGTH, START, END = 77, 49_406, 49_407
PRECISIONS = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.2}  # and how far the unit vectors may be off


def theirs_of(model: Any) -> Any:
    """The same model as transformers has it."""
    keymap, tensors = layouts.load("hf-clip"), model.state_dict()
    config = transformers.CLIPConfig.from_dict(keymap.config_back(model.config.to_dict()))
    made = transformers.CLIPModel(config).eval()
    infos = {name: Info(tuple(tensor.shape), "F32") for name, tensor in tensors.items()}
    plan = keymap.back(infos, model.config.to_dict(), ties=True)
    made.load_state_dict(plan.run(lambda name: tensors[name]), strict=True)
    return made


def texts(rows: int, ragged: bool) -> torch.Tensor:
    """Token ids of texts that end where a caption would, or at the last position."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40_000, (rows, LENGTH), generator=generator)
    ends = torch.randint(4, 24, (rows,), generator=generator) if ragged else torch.full((rows,), LENGTH - 1)
    places = torch.arange(LENGTH)
    ids[:, 0] = START
    ids[places == ends[:, None]] = END
    return ids.masked_fill(places > ends[:, None], 0)


def features(found: Any) -> torch.Tensor:
    """What transformers' calls give, in older releases a tensor."""
    return found if isinstance(found, torch.Tensor) else found.pooler_output


def checked(sides: dict[str, Callable[[], torch.Tensor]]) -> None:
    """Refuse to time sides that give something else than the first."""
    first, *others = ((name, torch.nn.functional.normalize(side().float(), dim=1)) for name, side in sides.items())
    for name, vectors in others:
        far = float((vectors - first[1]).abs().max())
        allowed = next((limit for precision, limit in PRECISIONS.items() if precision in name), 1e-4)
        if far > allowed:
            raise SystemExit(f"{name} differs from {first[0]} by {far:.2e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="clip-vit-b-32")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    fewer = {} if arguments.layers is None else dict.fromkeys(("num_layers", "image_num_layers"), arguments.layers)
    generator = torch.Generator().manual_seed(0)
    model = zoo.create(arguments.variant, generator=generator, **fewer).eval()
    theirs = theirs_of(model)
    ours = {"zoo, as loaded": model}
    ours |= {f"zoo, {precision}": zoo.optimize(model, precision) for precision in arguments.precisions}
    size = model.config.image_size
    pixels = torch.randn(arguments.rows, 3, size, size, generator=generator)
    cases: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "pictures": (lambda: features(theirs.get_image_features(pixels)), lambda m: m.encode_image(pixels)),
    }
    for name, ragged in (("texts, full", False), ("texts, ragged", True)):
        ids = texts(arguments.rows, ragged)
        cases[name] = (
            lambda ids=ids: features(theirs.get_text_features(ids)),  # type: ignore[misc]
            lambda m, ids=ids: m.encode_text(ids),  # type: ignore[misc]
        )
    print(machine())
    rows: list[list[str]] = []
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for case, (reference, call) in cases.items():
            sides = {"transformers": reference}
            sides |= {name: (lambda m=m, call=call: call(m)) for name, m in ours.items()}  # type: ignore[misc]
            checked(sides)
            times = interleaved(sides, arguments.repeats)
            found[case] = times
            for name, milliseconds in times.items():
                ratio = times["transformers"] / milliseconds
                rows.append([case, name, f"{1000 * arguments.rows / milliseconds:,.0f}", f"{ratio:.2f} x"])
    table(f"{arguments.variant}, {arguments.rows} rows", ["what", "side", "rows a second", "speed"], rows)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "milliseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
