"""Families that nobody here has written yet: each stands in this file alone and gets the tasks that fit it.

Pixels (as Pixel-BERT reads them), one stream that writes beside regions (as VLP does), and two towers (as CLIP).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.strategies import randomised, relative
from zoo.errors import InputError, TaskError
from zoo.layers import FirstTokenPooler, Run, Stack, TextEmbeddings, bert_block_of, causal
from zoo.layers.heads import MaskedLMHead, RegionHead
from zoo.layers.padding import Part, joined
from zoo.models.base.model import Model, Reading, VisionLanguageModel
from zoo.models.base.outputs import Encoded, Joint, Streams
from zoo.models.bert import BertConfig
from zoo.registry.inputs import Input
from zoo.registry.tasks import TASKS, fitting
from zoo.registry.terms import IMAGE_TEXT_MATCHING, MASKED_REGION, MASKED_WORDS, PretrainingTerm
from zoo.registry.variants import TEXT_INPUTS
from zoo.tasks.base import canonical_state, offers_of_class

SIZES = {
    "vocab_size": 19,
    "hidden_size": 8,
    "num_layers": 2,
    "num_heads": 2,
    "intermediate_size": 11,
    "max_positions": 10,
}


def words_head(c: Any) -> nn.Module:
    return MaskedLMHead(c.hidden_size, c.hidden_size, c.vocab_size, c.activation, c.norm_eps)


def embeddings_of(c: Any) -> TextEmbeddings:
    norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
    return TextEmbeddings(c.vocab_size, c.hidden_size, c.max_positions, c.num_segments, norm, dropout=c.dropout)


# -- pixels
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class PixelConfig(BertConfig):
    patch: int = 4


class PixelBert(VisionLanguageModel):
    """Words and the cells of a convolution over the picture, in one encoder."""

    Config = PixelConfig
    heads = {"masked_lm": words_head, "image_text_matching": lambda c: nn.Linear(c.hidden_size, 2)}
    offers = {name: VisionLanguageModel.offers[name] for name in ("words", "fused")}
    pretraining = (replace(MASKED_WORDS, only_where=("match_labels", 1)), IMAGE_TEXT_MATCHING)
    own_inputs = (Input("pixel_values", ("batch", "channels", "height", "width"), "float", "the picture, 3 channels"),)
    inputs = (*TEXT_INPUTS, "pixel_values")
    embeddings: TextEmbeddings

    def __init__(self, c: PixelConfig) -> None:
        super().__init__(c)
        self.embeddings = embeddings_of(c)
        self.cells = nn.Sequential(
            nn.Conv2d(3, c.hidden_size, c.patch, stride=c.patch), nn.BatchNorm2d(c.hidden_size), nn.ReLU()
        )
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Joint:
        if pixel_values is None:
            raise InputError("give pixel_values")
        text = self.embeddings(input_ids, token_type_ids, position_ids)
        cells = self.cells(pixel_values).flatten(2).transpose(1, 2)  # (batch, cells, hidden)
        mask = self.mask((text.shape[0], text.shape[1]), cells.shape[1], attention_mask, lengths)
        run = Run(torch.cat([text, cells], 1), mask, None, output_hidden_states, output_attentions)
        encoded = run.encoded(run.through(self.encoder), self.pooler)
        return Joint(**vars(encoded), text_length=text.shape[1])

    @staticmethod
    def mask(grid: tuple[int, int], cells: int, mask: Tensor | None, lengths: Sequence[int] | None) -> Tensor | None:
        return joined(Part(grid, mask, lengths), Part((grid[0], cells)))

    def word_mask(self, given: Mapping[str, Any], encoded: Joint) -> tuple[Tensor | None, None]:
        batch, total = encoded.last_hidden_state.shape[:2]
        grid = (batch, encoded.text_length)
        return self.mask(grid, total - grid[1], given.get("attention_mask"), given.get("lengths")), None


# -- one stream that writes
# ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WriterConfig(BertConfig):
    visual_size: int = 5


class Writer(VisionLanguageModel):
    """Regions and context see each other; a written word sees them, itself and those before it."""

    Config = WriterConfig
    heads = {
        "masked_lm": words_head,
        "next_word": words_head,
        "masked_region": lambda c: RegionHead(c.hidden_size, 4, c.activation, c.norm_eps),
        "image_text_matching": lambda c: nn.Linear(c.hidden_size, 2),
    }
    pretraining = (
        MASKED_WORDS,
        PretrainingTerm(
            name="next_word", reads=("words",), labels="next_words", takes=("token_table",), loss="tokens", weight=0.5
        ),
        MASKED_REGION,
        IMAGE_TEXT_MATCHING,
    )
    own_inputs = (Input("ranks", ("batch", "length"), "int", "0 = context, 1, 2, ... = words as they are written"),)
    inputs = (*TEXT_INPUTS, "visual_features", "visual_mask", "ranks")
    embeddings: TextEmbeddings

    def __init__(self, c: WriterConfig) -> None:
        super().__init__(c)
        self.embeddings = embeddings_of(c)
        self.regions = nn.Linear(c.visual_size, c.hidden_size)
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.pooler = FirstTokenPooler(c.hidden_size) if c.pooler else None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        visual_features: Tensor | None = None,
        visual_mask: Tensor | None = None,
        ranks: Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
    ) -> Joint:
        if visual_features is None or ranks is None:
            raise InputError("give visual_features and ranks")
        text, regions = self.embeddings(input_ids, token_type_ids, position_ids), self.regions(visual_features)
        mask = self.mask((text.shape[0], text.shape[1]), regions.shape[1], attention_mask, visual_mask)
        all_ranks = torch.cat([ranks, ranks.new_zeros(regions.shape[:2])], 1)
        kept = output_hidden_states, output_attentions
        run = Run(torch.cat([text, regions], 1), mask, None, *kept, ranks=all_ranks)
        encoded = run.encoded(run.through(self.encoder, causal()), self.pooler)
        return Joint(**vars(encoded), text_length=text.shape[1])

    @staticmethod
    def mask(grid: tuple[int, int], regions: int, text: Tensor | None, image: Tensor | None) -> Tensor | None:
        return joined(Part(grid, text), Part((grid[0], regions), image, mask_name="visual_mask"))

    def word_mask(self, given: Mapping[str, Any], encoded: Joint) -> tuple[Tensor | None, None]:
        batch, total = encoded.last_hidden_state.shape[:2]
        grid = (batch, encoded.text_length)
        return self.mask(grid, total - grid[1], given.get("attention_mask"), given.get("visual_mask")), None


# -- two towers
# ------------------------------------------------------------------------------------------------------------------


class Similarity(nn.Module):
    """``exp(scale) · cos(text, image)`` of each text with each picture."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(()))

    def init_parameters(self, std: float, generator: object = None) -> None:
        self.scale.fill_(2.6593)

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        text, image = nn.functional.normalize(text, dim=1), nn.functional.normalize(image, dim=1)
        return self.scale.exp() * text @ image.T


def uniformity(name: str, scores: Tensor, labels: None, real: None, beside: Mapping[str, Any]) -> Tensor:
    """A loss of the family's own: how alike rows are that do not belong together."""
    return scores.masked_fill(torch.eye(len(scores), dtype=torch.bool), 0).pow(2).mean()


class Towers(Model):
    """A text encoder and a picture's convolution that meet in their vectors alone."""

    Config = PixelConfig
    heads = {"image_text_contrastive": Similarity, "spread": Similarity}
    offers = {
        "text_summary": Reading(lambda e: e.text.pooler_output),
        "image_summary": Reading(lambda e: e.image.pooler_output),
    }
    pretraining = (
        PretrainingTerm(name="image_text_contrastive", reads=("text_summary", "image_summary"), loss="contrastive"),
        PretrainingTerm(
            name="spread",
            reads=("text_summary", "text_summary"),
            loss="tests.tasks.test_new_families:uniformity",
            weight="spread_weight",
            options={"spread_weight": 0.1},
        ),
    )
    own_inputs = PixelBert.own_inputs
    inputs = ("input_ids", "attention_mask", "pixel_values")

    def __init__(self, c: PixelConfig) -> None:
        super().__init__(c)
        self.embeddings = embeddings_of(c)
        self.encoder = Stack([bert_block_of(c) for _ in range(c.num_layers)])
        self.text_pooler = FirstTokenPooler(c.hidden_size)
        self.picture = nn.Sequential(
            nn.Conv2d(3, c.hidden_size, c.patch, stride=c.patch), nn.BatchNorm2d(c.hidden_size), nn.ReLU()
        )
        self.image_projection = nn.Linear(c.hidden_size, c.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, pixel_values: Tensor) -> Streams:
        run = Run(self.embeddings(input_ids), attention_mask)
        cells = self.picture(pixel_values).flatten(2).transpose(1, 2)
        image = Encoded(cells, self.image_projection(cells.mean(1)))
        return Streams(text=run.encoded(run.through(self.encoder), self.text_pooler), image=image)


# -- what they get
# ------------------------------------------------------------------------------------------------------------------


FAMILIES: dict[str, tuple[type[Model], dict[str, Any]]] = {
    "pixel-tiny": (PixelBert, {"streams": 1, "fusion": "joint"}),
    "writer-tiny": (Writer, {"streams": 1, "fusion": "joint"}),
    "towers-tiny": (Towers, {"streams": 1, "fusion": "towers"}),
}
OVER_PICTURES = {
    "masked-lm",
    "image-text-matching",
    "pretraining",
    "visual-question-answering",
    "visual-reasoning",
    "visual-entailment",
    "sequence-classification",
    "multiple-choice",
    "image-text-retrieval",
}
TASKS_OF = {
    "pixel-tiny": OVER_PICTURES,
    "writer-tiny": OVER_PICTURES | {"masked-region", "grounding", "multi-task"},
    "towers-tiny": {"pretraining"},
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, (cls, how) in FAMILIES.items():
            zoo.register(name, cls, SIZES, pillar="cross-modal", **how)
            stack.callback(zoo.unregister, name)
        yield


def build(name: str, task: str | None, **options: Any) -> Any:
    return randomised(zoo.create(name, task=task, dtype=torch.float64, dropout=0.0, attention_dropout=0.0, **options))


def batch_of(name: str) -> dict[str, Tensor]:
    """Four texts with padding and their pictures."""
    generator = torch.Generator().manual_seed(1)
    real = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    found = {"input_ids": torch.randint(1, 19, (4, 5), generator=generator), "attention_mask": real}
    if name == "writer-tiny":
        found["visual_features"] = torch.randn(4, 3, 5, generator=generator, dtype=torch.float64)
        found["visual_mask"] = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]])
        return found | {"ranks": torch.tensor([[0, 0, 1, 2, 3]]).expand(4, -1)}
    return found | {"pixel_values": torch.randn(4, 3, 8, 12, generator=generator, dtype=torch.float64)}


def for_task(task: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Two pictures of one text, or two texts for one picture, where the task judges such."""
    texts = ("input_ids", "attention_mask", "ranks")
    if task == "visual-reasoning":
        return {key: x[::2] if key in texts else x.unflatten(0, (2, 2)) for key, x in batch.items()}
    if task == "multiple-choice":
        return {key: x.unflatten(0, (2, 2)) if key in texts else x[::2] for key, x in batch.items()}
    return batch


def labels_for(name: str, task: str) -> dict[str, Any]:
    words = torch.tensor([[-100, 3, -100, 5, 7]]).expand(4, -1)  # the last place is padding but in row 1
    answers = torch.tensor([0, 1, 1, 0])
    regions = {
        "region_labels": torch.tensor([[1, -1, 1]]).expand(4, -1),
        "region_targets": torch.full((4, 3, 4), 0.25, dtype=torch.float64),
    }
    by_task: dict[str, dict[str, Any]] = {
        "masked-lm": {"labels": words},
        "masked-region": regions,
        "visual-reasoning": {"labels": answers[:2]},
        "multiple-choice": {"labels": answers[:2]},
        "grounding": {"labels": torch.rand(4, 3, dtype=torch.float64)},
        "multi-task": {"labels": torch.rand(4, 3129, dtype=torch.float64), "head": "visual_question_answering"},
    }
    if task != "pretraining":
        return by_task.get(task, {"labels": answers})
    if name == "towers-tiny":
        return {}
    both = {"labels": words, "match_labels": answers}
    return both if name == "pixel-tiny" else {**both, **regions, "next_words": words.roll(1, 1)}


def test_each_family_gets_the_tasks_that_fit_it_and_no_others():
    for name, (cls, _) in FAMILIES.items():
        assert set(fitting(offers_of_class(cls))) == TASKS_OF[name]
        assert set(zoo.info(name)["tasks"]) == TASKS_OF[name]
        for task in TASKS:
            assert (name in zoo.list_models("*-tiny", task=task)) == (task in TASKS_OF[name]), task
            if task not in TASKS_OF[name]:
                with pytest.raises(TaskError, match="does not fit"):
                    zoo.create(name, task=task, device="meta")


@pytest.mark.parametrize(("name", "task"), [(name, task) for name in FAMILIES for task in sorted(TASKS_OF[name])])
def test_it_trains_saves_and_loads(name, task, tmp_path):
    model, given = build(name, task), for_task(task, batch_of(name))
    labels = labels_for(name, task)
    out = model.train()(**given, **labels)
    assert out.loss.isfinite()
    assert float(out.loss) > 0
    assert relative(out.loss.detach(), sum(out.losses.values()).detach()) <= 1e-12
    out.loss.backward()
    if task == "pretraining":
        assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    again = zoo.load(zoo.save(model.eval(), tmp_path / "saved"))
    mine, theirs = canonical_state(model), canonical_state(again)
    assert {"running_mean", "running_var"} <= {key.split(".")[-1] for key in mine} or name == "writer-tiny"
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert again.options == model.options
    with torch.no_grad():
        a, b = model(**given, **labels), again(**given, **labels)
    assert torch.equal(a.loss, b.loss)


@pytest.mark.parametrize("name", FAMILIES)
def test_fresh_weights_are_drawn_convolutions_and_batch_norms_too(name):
    one, same = (zoo.create(name, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    for (key, a), b in zip(one.state_dict().items(), same.state_dict().values(), strict=True):
        assert a.isfinite().all(), key
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", ["pixel-tiny", "writer-tiny"])
def test_labels_at_padding_do_not_count_for_them_either(name):
    model, given, labels = build(name, "pretraining"), batch_of(name), labels_for(name, "pretraining")
    with torch.no_grad():
        wanted = model(**given, **labels).losses
        changed = {key: x.clone() for key, x in labels.items()}
        for key in {"labels", "next_words"} & set(changed):
            changed[key][given["attention_mask"] == 0] = 9
        if name == "writer-tiny":
            changed["region_labels"][given["visual_mask"] == 0] = 1
        found = model(**given, **changed).losses
    assert set(wanted) == {term.name for term in FAMILIES[name][0].pretraining}
    for key, loss in wanted.items():
        assert relative(loss, found[key]) <= 1e-12, key


def test_words_count_for_the_pictures_that_belong_to_them_alone():
    model, given, labels = (
        build("pixel-tiny", "pretraining"),
        batch_of("pixel-tiny"),
        labels_for("pixel-tiny", "pretraining"),
    )
    alone = build("pixel-tiny", "masked-lm")
    with torch.no_grad():
        told = model(**given, **labels).losses["masked_lm"]
        kept = labels["labels"].masked_fill((labels["match_labels"] != 1)[:, None], -100)
        alone.load_state_dict(model.state_dict(), strict=False)
        assert relative(told, alone(**given, labels=kept).loss) <= 1e-12
    with pytest.raises(InputError, match="counts where match_labels is 1"):
        model(**given, labels=labels["labels"])


@pytest.mark.parametrize("packed", [True, False])
def test_what_is_written_sees_regions_context_and_earlier_words(packed):
    model, given = build("writer-tiny", "masked-lm"), batch_of("writer-tiny")

    def words(**changes: Tensor) -> Tensor:
        with torch.no_grad(), zoo.packing(packed):
            return model(**{**given, **changes}).prediction_logits[:, :5]

    plain = words()
    for place, first in ((2, 2), (3, 3)):  # a written word changes itself and what is written after it
        ids = given["input_ids"].clone()
        ids[:, place] = (ids[:, place] + 1) % 19
        changed = (words(input_ids=ids) - plain).abs().amax(2) > 1e-9
        assert not changed[:, :first].any()
        assert changed[1, first:].all()
    features = given["visual_features"].clone()
    features[1, 0] += 1
    changed = (words(visual_features=features) - plain).abs().amax(2) > 1e-9
    assert changed[1].all()
    assert not changed[[0, 2, 3]].any()


def test_two_towers_are_taught_by_the_other_rows_of_the_batch():
    model, given = build("towers-tiny", "pretraining", spread_weight=0.2), batch_of("towers-tiny")
    with torch.no_grad():
        out = model(**given)
    scores = out.scores["image_text_contrastive"]
    both = [-x.log_softmax(1).diagonal().mean() for x in (scores, scores.T)]
    assert relative(out.losses["image_text_contrastive"], sum(both) / 2) <= 1e-12
    apart = out.scores["spread"]
    assert relative(out.losses["spread"], 0.2 * (apart - apart.diagonal().diag()).pow(2).mean()) <= 1e-12
