"""The pandas UDF of the docs, run as it stands there on a small local Spark."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

import zoo
from zoo.tokenization.wordpiece import wordpiece

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "prediction.md"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "barks"]
TINY = {"vocab_size": len(WORDS), "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 12}

try:
    import pyspark
except ImportError:
    pyspark = None


@pytest.mark.slow
@pytest.mark.skipif(pyspark is None or shutil.which("java") is None, reason="pyspark or Java is not installed")
def test_the_udf_of_the_docs_gives_the_vectors_of_the_pipeline(tmp_path):
    (code,) = (block for block in re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL) if "pyspark" in block)
    tokenizer = wordpiece({word: number for number, word in enumerate(WORDS)}, max_length=32)
    model = zoo.create("bert-base", task="sentence-embedding", max_positions=32, **TINY)
    folder = zoo.save(model, tmp_path / "model", tokenizer)
    texts = [" ".join(["a dog", "cat barks", "dog"][number % 3 :] * (1 + number % 4)) for number in range(60)]
    (tmp_path / "corpus.txt").write_text("\n".join(texts) + "\n")
    name = '"minilm-l6-h384.all-minilm-l6-v2"'
    assert name in code
    script = code.replace(name, repr(str(folder))).replace("builder", 'builder.master("local[2]")')
    script += (
        "\nfor row in spark.read.parquet('vectors').collect():\n    print(repr((row.value, list(row.embedding))))\n"
    )
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    (tmp_path / "udf.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "udf.py"],
        cwd=tmp_path,
        env={**os.environ, **path, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [ast.literal_eval(line) for line in done.stdout.splitlines() if line.startswith("(")]
    assert sorted(text for text, _ in rows) == sorted(texts)
    vectors = [row["embedding"] for row in zoo.pipeline("sentence-embedding", folder)(texts)]
    wanted = dict(zip(texts, vectors, strict=True))
    for text, vector in rows:
        assert numpy.allclose(vector, wanted[text], atol=1e-6)
