"""The engine beyond one machine: rows through Ray Data, in the same order, with the same results.

Rows are handed to Ray in chunks, so that neither they nor their results pile up here; each worker is a
process that loads the model once for a chunk. What a worker that dies had in hand is computed again by
another.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy

from zoo.errors import InputError, ZooError, missing_extra
from zoo.inference.bulk import Engine

CHUNK = 100_000
"""Rows that Ray has at once."""
TASK = 512
"""Rows of one task, which are sorted by length together and lost together with a worker."""


class RayWorker:
    """A pipeline in a process of Ray's."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.pipeline = make()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Rows and their places -> their results and places, in `written` form."""
        made = numpy.empty(len(batch["row"]), dtype=object)
        for number, result in enumerate(self.pipeline.stream(read(row) for row in batch["row"])):
            made[number] = written(result)
        return {"place": batch["place"], "result": made}


def written(value: Any) -> str:
    """A row or a result as JSON that `read` gives back as it was, with its tuples and arrays."""
    return json.dumps(_tagged(value))


def _tagged(value: Any) -> Any:
    if isinstance(value, tuple):
        return {"tuple": [_tagged(part) for part in value]}
    if isinstance(value, numpy.ndarray):
        kept = numpy.ascontiguousarray(value)
        return {
            "array": base64.b64encode(kept.tobytes()).decode(),
            "dtype": kept.dtype.str,
            "shape": kept.shape,
        }
    if isinstance(value, Mapping):
        return {"dict": [[key, _tagged(part)] for key, part in value.items()]}
    return [_tagged(part) for part in value] if isinstance(value, list) else value


def read(text: str) -> Any:
    """What was `written`."""
    return _plain(json.loads(text))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    if "tuple" in value:
        return tuple(_plain(part) for part in value["tuple"])
    if "dict" in value:
        return {key: _plain(part) for key, part in value["dict"]}
    array = numpy.frombuffer(base64.b64decode(value["array"]), numpy.dtype(value["dtype"]))
    return array.reshape(value["shape"]).copy()


def on_ray(make: Callable[[], Any], *, address: str | None = None, workers: int | None = None) -> Engine:
    """An engine on the Ray cluster at ``address``, or on one that is started here.

    make: what gives the pipeline in each worker, `functools.partial` of `zoo.pipeline` for one. workers:
    how many there are at most; by default as many as the cluster has processors. A ZooError where no
    cluster answers at ``address`` within ten seconds.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("predicting on Ray", "ray", "ray") from None
    if not ray.is_initialized():
        check_answers(address)
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ZooError(f"no Ray cluster answers at {address!r}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def engine(rows: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
        while chunk := list(islice(rows, CHUNK)):
            items = [{"place": place, "row": written(row)} for place, row in enumerate(chunk)]
            blocks = -(-len(items) // TASK)
            found = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
                RayWorker,
                fn_constructor_args=(make,),
                batch_size=TASK,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(most, blocks)),
                num_cpus=1,
            )
            for place, row in enumerate(found.iter_rows()):
                if row["place"] != place:
                    raise ZooError(f"Ray gave the result of row {row['place']} where that of row {place} was due")
                yield read(row["result"])

    return engine


def check_answers(address: str | None, seconds: float = 10) -> None:
    """Refuse an address where nobody listens, which Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:\w+://)?\[?([^/]+?)\]?:(\d+)", address or "")
    if found is None:  # none, "auto", "local"
        return
    if not 0 < int(found[2]) < 1 << 16:
        raise InputError(f"the port of {address!r} must lie between 1 and 65535")
    try:
        socket.create_connection((found[1], int(found[2])), seconds).close()
    except OSError as error:
        raise ZooError(f"no Ray cluster answers at {address!r}: {error}") from error
