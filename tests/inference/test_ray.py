"""Rows through Ray Data on a cluster of two nodes: the same results, also when a worker dies."""

from __future__ import annotations

import functools
import os
import signal
import socket
from pathlib import Path

import numpy
import pytest

import zoo
from zoo.errors import InputError, MissingExtraError, ZooError
from zoo.inference.bulk import write_results
from zoo.inference.pipeline.embeddings import SentenceEmbeddingPipeline
from zoo.inference.ray import check_answers, read, written
from zoo.tokenization.wordpiece import wordpiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "barks"]
TINY = {"vocab_size": len(WORDS), "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 12}
ROWS = [{"text": " ".join(["a dog", "cat barks", "dog"][number % 3 :] * (1 + number % 4))} for number in range(1500)]

try:
    import ray
    from ray.cluster_utils import Cluster
except ImportError:
    ray = None


def test_ray_names_the_extra_that_it_needs():
    from zoo.inference.ray import on_ray

    if ray is None:
        with pytest.raises(MissingExtraError, match=r"extended-zoo\[ray\]"):
            on_ray(dict)


def test_an_address_where_nobody_listens_is_refused_at_once():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, but nobody listens
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            with pytest.raises(ZooError, match=f"no Ray cluster answers at '{address}'"):
                check_answers(address)
        taken.listen()
        check_answers(f"127.0.0.1:{port}")
    with pytest.raises(InputError, match="between 1 and 65535"):
        check_answers("127.0.0.1:70000")
    for address in (None, "auto", "local"):
        check_answers(address)


@pytest.mark.parametrize(
    "value",
    [
        "a text with \ud800 half a pair",
        ("a", ("pair", None)),
        {"label": "x", "score": 0.1, "words": [{"start": 3}], "tuple": [float("inf")], "array": 1},
        {"embedding": numpy.arange(6, dtype=numpy.float32).reshape(2, 3), "empty": numpy.zeros((0, 4), numpy.float16)},
    ],
)
def test_rows_and_results_come_back_from_a_worker_as_they_were(value):
    back = read(written(value))
    assert type(back) is type(value)
    if isinstance(value, dict) and "embedding" in value:
        for name, array in value.items():
            assert (back[name].dtype, back[name].shape) == (array.dtype, array.shape)
            assert numpy.array_equal(back[name], array)
    else:
        assert back == value


class Dying(SentenceEmbeddingPipeline):
    """A pipeline whose process is killed in the midst of the first rows that any worker has."""

    def __init__(self, folder, mark):
        super().__init__(zoo.load(folder))
        self.mark = Path(mark)

    def stream(self, rows):
        for number, result in enumerate(super().stream(rows)):
            if number == 100:
                try:
                    self.mark.touch(exist_ok=False)
                except FileExistsError:
                    pass
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield result


@pytest.mark.slow
@pytest.mark.skipif(ray is None, reason="ray is not installed")
def test_two_nodes_give_the_rows_of_one_machine_also_when_a_worker_is_killed(tmp_path, monkeypatch):
    from zoo.inference.ray import on_ray

    tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=32)
    folder = zoo.save(
        zoo.create("bert-base", task="sentence-embedding", max_positions=32, **TINY), tmp_path / "m", tokenizer
    )
    local = zoo.pipeline("sentence-embedding", zoo.load(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # for the workers, who look up `Dying`
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    try:
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        for name, engine in (
            ("local", local.stream),
            ("ray", on_ray(functools.partial(Dying, folder, tmp_path / "killed"))),
        ):
            shape = lambda row, result: dict(result)  # noqa: E731
            out = tmp_path / f"{name}.npy"
            assert write_results(out, ROWS, lambda row: row["text"], engine, run={}, shape=shape) == 1500
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert (tmp_path / "killed").exists()
    assert numpy.allclose(numpy.load(tmp_path / "ray.npy"), numpy.load(tmp_path / "local.npy"), atol=1e-5)
