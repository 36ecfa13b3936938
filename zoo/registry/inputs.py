"""Every argument that a model's ``forward`` reads, and every label: its axes, its dtype, the mask and the count of its
axis, and what it means. Imports no torch.

Tasks, collators, tests and the table in ``docs/architecture.md`` read this and no list of their own. A family that
reads something new says so in `Model.own_inputs`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Input:
    """An argument. ``axes``: the names of its axes, "batch" first, () for what is no tensor.

    ``masks`` and ``counts``: the axis whose real positions it tells, as a mask (1/True = real) or as a count of a
    row's first positions. ``dims``: how many axes it may have besides, where a caller may give fewer or more.
    ``example``: what stands for it where nobody gives one, "ids", "random", "0" or "1"; "" = it can
    be left out; ``where``: only of a config in which this field is true. Axes that are sizes bear the
    names of config fields.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    meaning: str
    masks: str = ""
    counts: str = ""
    dims: tuple[int, ...] = ()
    example: str = ""
    where: str | None = None

    @property
    def shape(self) -> str:
        """The axes as a reader writes them."""
        return f"({', '.join(self.axes)})" if self.axes else ""


def _text(prefix: str, axis: str, which: str) -> tuple[Input, ...]:
    rows = ("batch", axis)
    real = f"1/True = a real token{which}, wherever it stands (right padding, left padding, holes)"
    matrix = "; or (batch, query, key): the query attends to the key (K-BERT's visible matrix, sequence-to-sequence)"
    return (
        Input(f"{prefix}input_ids", rows, "int", f"token ids{which}", example="ids"),
        Input(
            f"{prefix}attention_mask",
            rows,
            "int or bool",
            real + ("" if prefix else matrix),
            masks=axis,
            dims=(3,),
            example="" if prefix else "1",
        ),
        Input(
            f"{prefix}position_ids",
            rows,
            "int",
            f"positions{which}; 0, 1, ... by default; one row is used for the whole batch",
        ),
        Input(
            f"{prefix}language_ids",
            rows,
            "int, or a name",
            f"ids or names of the languages{which} (XLM)",
            dims=(1,),
            example="0",
            where="tells_languages",
        ),
    )


_INPUTS = (
    *_text("", "length", ""),
    Input(
        "token_type_ids",
        ("batch", "length"),
        "int",
        "segment of each token; 0 by default",
        example="0",
        where="num_segments",
    ),
    Input(
        "inputs_embeds",
        ("batch", "length", "embedding"),
        "float",
        "token embeddings before position, segment and norm, in place of `input_ids`",
    ),
    Input(
        "task_type_ids",
        ("batch", "length"),
        "int",
        "the task that a text is for. ERNIE of Baidu, from 2.0 on: (batch, length) or (batch,), 0 by default; "
        "12-in-1: (batch,), the row of the task's token",
        dims=(1,),
    ),
    *_text("decoder_", "target length", " of the target"),
    Input(
        "entity_embeds",
        ("batch", "length", "entity size"),
        "float",
        "ERNIE of Tsinghua: a vector for each mention at its first piece, zeros elsewhere",
    ),
    Input("entity_mask", ("batch", "length"), "int or bool", "ERNIE of Tsinghua: 1/True = an entity stands here"),
    Input(
        "entity_candidates",
        (),
        "by source `zoo.data.candidates.Candidates`",
        "KnowBert: which spans may be mentions, and what they may mean; a span's last token is included, -1 = no "
        "span, id 0 = no candidate. In the pre-training of ERNIE of Tsinghua: (candidates, entity size) float, the "
        "vectors to choose from, the first one zero",
    ),
    Input("ngram_ids", ("batch", "n-grams"), "int", "ZEN: the n-grams of each text, 0 = padding"),
    Input("ngram_mask", ("batch", "n-grams"), "int or bool", "ZEN: 1/True = a real n-gram", masks="n-grams"),
    Input("ngram_token_type_ids", ("batch", "n-grams"), "int", "ZEN: segment of each n-gram"),
    Input("ngram_positions", ("batch", "length", "n-grams"), "int", "ZEN: 1 = the n-gram covers the character"),
    Input(
        "visual_features",
        ("batch", "regions", "visual size"),
        "float",
        "features of the regions of each picture",
        example="random",
    ),
    Input(
        "visual_boxes",
        ("batch", "regions", "box size"),
        "float",
        "boxes, encoded to the model's width; `Regions.for_model(config)` makes features, boxes and mask",
        example="random",
    ),
    Input("visual_mask", ("batch", "regions"), "int or bool", "1/True = a real region", masks="regions", example="1"),
    Input(
        "visual_token_type_ids",
        ("batch", "regions"),
        "int",
        "segment of each region; the config's `visual_segment` by default",
    ),
    Input(
        "visual_masked",
        ("batch", "regions"),
        "int or bool",
        "UNITER: 1/True = a masked region, whose feature the caller has set to zero",
    ),
    Input(
        "image_text_alignment",
        ("batch", "regions", "words"),
        "int",
        "positions of each region's words in the text, -1 = none",
    ),
    Input(
        "pixel_values",
        ("batch", "channels", "height", "width"),
        "float",
        "pictures, three channels, resized and normalized as the model's `Images` do; a batch of pictures may differ "
        "in size from the batch of texts that they are compared with",
        example="random",
    ),
    Input(
        "lengths",
        ("batch",),
        "sequence of ints",
        "real tokens per row, for rows that are padded on the right: the batch is packed without a synchronization "
        "with the accelerator",
        counts="length",
    ),
    Input(
        "visual_lengths",
        ("batch",),
        "sequence of ints",
        "real regions per row, for rows that are padded on the right: the same for pictures",
        counts="regions",
    ),
    Input(
        "ranks",
        ("batch", "length"),
        "int",
        "which tokens are written: 0 = read, which all attend to; 1, 2, ... = written in this order, each attends to "
        "what is read and to those before it (VLP, UNIMO, Oscar)",
    ),
    Input(
        "cache",
        (),
        "`zoo.layers.cache.KeyValueCache`",
        "keys and values of the tokens before these, while a text is written",
    ),
    Input("all_pairs", (), "bool", "ViLBERT: every text with every picture"),
    Input(
        "output_hidden_states",
        (),
        "bool or ints",
        "True: return the states of all layers; or a list of the layers whose states to return, 0 = the embeddings",
    ),
    Input(
        "output_attentions", (), "bool or ints", "True: return the attention maps of all layers; or a list of layers"
    ),
)
_LABELS = (
    Input(
        "labels",
        (),
        "by task",
        "(batch, length) for tokens, -100 = ignored; (batch,) classes; (batch, classes) floats for several at once",
    ),
    Input("next_sentence_label", ("batch",), "int", "0 = B follows A"),
    Input("sentence_order_label", ("batch",), "int", "0 = the order was kept"),
    Input(
        "match_labels",
        ("batch",),
        "int",
        "whether words and picture belong together; the model's page says which label means yes",
    ),
    Input("pairs", ("batch", "spans", "2"), "int", "SpanBERT: the positions of each span's outer neighbors"),
    Input("pair_labels", ("batch", "spans", "places"), "int", "SpanBERT: the span's words, -100 = ignored"),
    Input(
        "entity_labels",
        ("batch", "length"),
        "int",
        "ERNIE of Tsinghua: which of `entity_candidates` is meant, -100 = no mention",
    ),
    Input("gold_entities", (), "by source (batch, spans) int", "KnowBert: the true entity of each candidate span"),
    Input(
        "region_labels",
        ("batch", "regions"),
        "int",
        "1 = predict this region. Without region 0 where that stands for the whole picture",
    ),
    Input(
        "region_targets",
        ("batch", "regions", "size"),
        "float",
        "the target: the detector's class probabilities, or the region's feature",
    ),
    Input("object_labels", ("batch", "regions"), "int", "LXMERT: the detector's class of each region, -100 = left out"),
    Input("object_confidence", ("batch", "regions"), "float", "LXMERT: how much that class counts"),
    Input("attribute_labels", ("batch", "regions"), "int", "LXMERT: the detector's attribute of each region"),
    Input("attribute_confidence", ("batch", "regions"), "float", "LXMERT: how much that attribute counts"),
    Input("answer_labels", ("batch",), "int", "LXMERT: the answer, where the text is a question, -100 = it is none"),
    Input(
        "feature_targets",
        ("batch", "regions", "visual size"),
        "float",
        "the features of the regions before they were masked; those count whose region label is 1",
    ),
    Input(
        "class_targets",
        ("batch", "regions", "classes"),
        "float, or int",
        "what the detector says of each region, the background first, or (batch, regions) numbers of classes; those "
        "count whose region label is 1",
        dims=(2,),
    ),
    Input("negatives", ("batch", "regions", "number"), "int", "contrastive targets: indexes of wrong regions"),
    Input("phrase_positions", ("batch", "phrases"), "int", "the position of each phrase in the text, -1 = padding"),
    Input("start_positions", ("batch",), "int", "first token of an answer; ignored if it is outside the text"),
    Input("end_positions", ("batch",), "int", "last token of an answer; ignored if it is outside the text"),
)


class InputTable(Mapping[str, Input]):
    """The rows by name, and which argument tells what is real of an axis."""

    def __init__(self, rows: Iterable[Input]) -> None:
        self._rows = {row.name: row for row in rows}
        self._masks = {row.masks: row.name for row in self._rows.values() if row.masks}
        self._counts = {row.counts: row.name for row in self._rows.values() if row.counts}

    def __getitem__(self, name: str) -> Input:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def plus(self, rows: Iterable[Input]) -> InputTable:
        """The table with a family's own rows, which come before those of the same name."""
        return InputTable((self._rows | {row.name: row for row in rows}).values())

    def mask(self, axis: str) -> str | None:
        """The mask of an axis."""
        return self._masks.get(axis)

    def count(self, axis: str) -> str | None:
        """The argument with the number of real positions at the front of an axis."""
        return self._counts.get(axis)

    def masked_axis(self, name: str) -> str | None:
        """The first axis of an argument that has a mask."""
        return next((axis for axis in self._rows[name].axes if axis in self._masks), None)

    def along(self, axis: str) -> list[str]:
        """The arguments that run along an axis, its mask excepted."""
        return [name for name, row in self._rows.items() if self.masked_axis(name) == axis and not row.masks]


INPUTS = InputTable(_INPUTS)
LABELS = InputTable(_LABELS)
