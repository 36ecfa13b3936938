"""The same text file written by other systems: with a byte order mark, other line ends, blanks
behind the lines, empty lines at the end, gzipped.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from zoo.cli.distill import _lines as distilled
from zoo.data.knowledge import EntityLexicon, NGramLexicon, readers, wordnet
from zoo.data.lines import numbered_lines
from zoo.errors import InputError


def ngrams(path: Path) -> list[tuple[str, ...]]:
    return [tuple(entry) for entry in NGramLexicon.read(path, list).entries]


def priors(path: Path) -> object:
    lexicon = EntityLexicon.read(path)
    return [lexicon.candidates("Nice\u2028Town"), len(lexicon)]


SEPARATED = "b\u2028c\u0085d\x0be"  # separators of Unicode that end no line
READERS = {
    "tsv": (lambda path: list(readers.read_tsv(path)), f"北京\tcapital\tChina\na\t{SEPARATED}\tf\n"),
    "nt": (lambda path: list(readers.read_triples(path)), f'<s> <p> <o> .\n<s> <p> "{SEPARATED}" .\n'),
    "aliases": (readers.read_aliases, f"Q1\tuniverse\t{SEPARATED}\nQ2\tearth\n"),
    "titles": (readers.read_entity_map, f"Paris\tQ90\n{SEPARATED}\tQ1\n"),
    "names": (readers.read_openke_names, f"2\nParis\t0\n{SEPARATED}\t1\n"),
    "ids": (lambda path: readers.read_openke_triples(path).tolist(), "1\n3 4 5\n"),
    "vectors": (lambda path: readers.read_vectors(path).tolist(), "0.5\t1\n2\t3\n"),
    "n-grams": (ngrams, "ab,5\nb\u2028c,4\n"),
    "priors": (priors, "Nice\u2028Town\t7\tQ1,0.75,Nice\tQ2,0.25,Good\nParis\t3\tQ90,1.0,Paris\n"),
    "exceptions": (lambda path: list(wordnet._exceptions(path)), "geese goose\nmice mouse\n"),
    "texts": (lambda path: list(distilled(path)), f"one text\t1\n{SEPARATED}\t0\n"),
}
WAYS = {
    "mark": lambda text: "\ufeff" + text,
    "crlf": lambda text: text.replace("\n", "\r\n"),
    "cr": lambda text: text.replace("\n", "\r"),
    "blanks": lambda text: text.replace("\n", "  \n"),
    "no end": lambda text: text.removesuffix("\n"),
    "empty lines": lambda text: text + "\n \n\n",
    "all": lambda text: "\ufeff" + text.replace("\n", " \r\n") + "\r\n",
}


@pytest.mark.parametrize(("way", "packed"), [*((way, False) for way in WAYS), ("mark", True), ("all", True)])
@pytest.mark.parametrize("kind", READERS)
def test_a_file_says_the_same_however_its_lines_are_written(tmp_path, kind, way, packed):
    read, text = READERS[kind]
    ending = f".{kind}" + (".gz" if packed else "")
    plain, other = tmp_path / f"plain{ending}", tmp_path / f"other{ending}"
    for path, content in ((plain, text), (other, WAYS[way](text))):
        data = content.encode("utf-8")
        path.write_bytes(gzip.compress(data) if packed else data)
    expected = read(plain)
    assert read(other) == expected
    assert len(expected) == 1 if kind == "ids" else len(expected) == 2


def test_a_broken_gzip_file_and_a_gap_among_vectors_are_refused(tmp_path):
    whole = gzip.compress(b"a\tb\tc\n" * 1000)
    for data in (whole[: len(whole) // 2], whole[:30] + b"\xff" * 20 + whole[50:], b"no gzip"):
        (tmp_path / "kb.tsv.gz").write_bytes(data)
        with pytest.raises(InputError, match=r"kb\.tsv\.gz can't be read"):
            list(numbered_lines(tmp_path / "kb.tsv.gz"))
    (tmp_path / "entity2vec.vec").write_text("1 2\n\n3 4\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2 is empty"):
        readers.read_vectors(tmp_path / "entity2vec.vec")
    assert list(numbered_lines(tmp_path / "entity2vec.vec")) == [(1, "1 2"), (2, ""), (3, "3 4")]
