"""The engine beyond one machine: rows through Ray Data, in the same order, with the same results.

Rows are handed to Ray in chunks, so that neither they nor their results pile up here; each worker is a
process that loads the model once for a chunk. What a worker that dies had in hand is computed again by
another.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

from zoo.errors import ZooError, missing_extra
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
        """Rows, pickled, and their places -> their results, pickled, and their places."""
        import numpy

        made = numpy.empty(len(batch["row"]), dtype=object)
        for number, result in enumerate(self.pipeline.stream(pickle.loads(row) for row in batch["row"])):
            made[number] = pickle.dumps(result)
        return {"place": batch["place"], "result": made}


def on_ray(make: Callable[[], Any], *, address: str | None = None, workers: int | None = None) -> Engine:
    """An engine on the Ray cluster at ``address``, or on one that is started here.

    make: what gives the pipeline in each worker, `functools.partial` of `zoo.pipeline` for one. workers:
    how many there are at most; by default as many as the cluster has processors.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise missing_extra("predicting on Ray", "ray", "ray") from None
    if not ray.is_initialized():
        try:
            ray.init(address=address, logging_level="ERROR", log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ZooError(f"no Ray cluster answers at {address!r}: {error}") from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    most = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def engine(rows: Iterator[Any]) -> Iterator[Mapping[str, Any]]:
        while chunk := list(islice(rows, CHUNK)):
            items = [{"place": place, "row": pickle.dumps(row)} for place, row in enumerate(chunk)]
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
                yield pickle.loads(row["result"])

    return engine
