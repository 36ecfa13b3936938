"""Models that write learn from rows: captions of pictures, and texts for the next word."""

from __future__ import annotations

import math
import random

import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors

import zoo
from tests.training.test_loop import SIZES, tokenizer  # noqa: F401
from zoo.data.captions import CaptionCollator, NextWordCollator
from zoo.data.regions.regions import Regions
from zoo.data.tables import find_columns
from zoo.errors import InputError, TaskError
from zoo.tokenization import Tokenizer
from zoo.tokenization.tokenizer import SpecialTokens
from zoo.training import evaluate, fit, task_options
from zoo.training.supervision import supervision_of

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "blue", "dog", "cat"]
CAPTIONS = [f"a {color} {animal}" for color in ("red", "blue") for animal in ("dog", "cat")]
BOXES = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])


def words(lower: bool = False) -> Tokenizer:
    """``<s> words </s>`` in RoBERTa's manner."""
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(WORDS[:4])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = SpecialTokens(pad="<pad>", cls="<s>", sep="</s>", unk="<unk>")
    return Tokenizer(backend, special=special, inputs=("input_ids", "attention_mask"))


def framed() -> Tokenizer:
    """``[CLS] words [SEP]`` with a mask in BERT's manner."""
    from zoo.tokenization.wordpiece import wordpiece

    return wordpiece({w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[4:]])})


def picture(caption: str, classes: int = 0) -> Regions:
    """Two regions: the first says the color, the second the animal."""
    _, color, animal = caption.split()
    features = torch.zeros(2, 4)
    features[0, ("red", "blue").index(color)] = 1.0
    features[1, 2 + ("dog", "cat").index(animal)] = 1.0
    more = {}
    if classes:
        more = {"confidence": torch.ones(2), "class_probabilities": torch.full((2, classes), 1 / classes)}
    return Regions(features, BOXES, (8.0, 8.0), format="normalised", **more)


def rows() -> tuple[list[dict], dict[str, Regions]]:
    found = [{"caption": caption, "image": f"{number}"} for number, caption in enumerate(CAPTIONS * 4)]
    return found, {row["image"]: picture(row["caption"], 3) for row in found}


UNIMO = {**SIZES, "vocab_size": len(WORDS), "visual_size": 4}
VLP = {**SIZES, "vocab_size": 10, "visual_size": 4, "box_size": 9, "num_regions": 2, "num_segments": 6}
VLP |= {"end_token_id": 3, "mask_token_id": 4, "initializer_range": 0.2}


def built(name: str):
    torch.manual_seed(0)
    options = {"dropout": 0.0, "attention_dropout": 0.0, "generator": torch.Generator().manual_seed(0)}
    if name == "unimo":
        return zoo.create("unimo-base", task="masked-lm", **UNIMO, **options), words()
    return zoo.create("vlp-base", task="masked-lm", **VLP, **options), framed()


@pytest.mark.parametrize("name", ["unimo", "vlp"])
def test_captions_are_learned_from_rows_and_written_for_pictures(name):
    model, tokens = built(name)
    table, pictures = rows()
    assert task_options(table, "masked-lm", pictured=True) == {}
    before = evaluate(model, table, tokenizer=tokens, regions=pictures)
    fit(model, table, tokenizer=tokens, regions=pictures, steps={"unimo": 80, "vlp": 250}[name], batch_size=16, lr=1e-2)
    after = evaluate(model, table, tokenizer=tokens, regions=pictures)
    assert set(after) == {"loss", "perplexity", "accuracy"}
    assert after["loss"] < 0.1 * before["loss"]
    assert after["accuracy"] == 1.0
    write = zoo.pipeline(
        "image-captioning", model, tokenizer=tokens, num_beams=2, num_return_sequences=2,
        regions=lambda named: zoo.data.regions.regions.stack([pictures[str(n)[:-4]] for n in named]),
    )  # fmt: skip
    found = write([f"{number}.png" for number in range(4)])
    assert [row["text"] for row in found] == CAPTIONS
    assert all(row["texts"][0] == row["text"] and row["scores"] == sorted(row["scores"])[::-1] for row in found)
    alone = write("2.png")
    assert alone["texts"] == found[2]["texts"]
    assert alone["score"] == pytest.approx(found[2]["score"], abs=1e-5)


def test_a_next_word_is_the_label_of_each_place_and_the_end_that_of_the_last():
    model, tokens = built("unimo")
    collate = NextWordCollator.of(tokens, model.config)
    batch = collate([[4, 5, 7], [4]])
    assert batch["input_ids"].tolist() == [[0, 4, 5, 7], [0, 4, 1, 1]]
    assert batch["labels"].tolist() == [[4, 5, 7, 2], [4, 2, -100, -100]]
    assert batch["ranks"].tolist() == [[1, 2, 3, 4]] * 2
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    cut = NextWordCollator(start_id=0, end_id=2, pad_id=1, longest=2)([[4, 5, 7]])
    assert cut["labels"].tolist() == [[4, 5, 2]]


def test_the_loss_of_captions_is_that_of_writing_them():
    """What `zoo.score` gives for the caption behind the picture, word by word."""
    model, tokens = built("unimo")
    table, pictures = rows()
    model.eval()
    found = evaluate(model, table[:4], tokenizer=tokens, regions=pictures)
    total = 0.0
    for row in table[:4]:
        target = torch.tensor([tokens.encode(row["caption"]).ids])
        inputs = pictures[row["image"]].for_model(model.config)
        total -= float(zoo.score(model, None, target, target_mask=torch.ones_like(target), **inputs).scores)
    assert found["loss"] == pytest.approx(total / 16, rel=1e-5)  # 4 captions of three words and an end


def reader(task, tokens, given, model, **options):
    cls = supervision_of(task, pictured="image" in given[0])
    found = cls(tokens, find_columns(given[0], cls.needed, cls.optional), options)
    found.prepare(model)
    return found


def test_vlp_hides_words_of_captions_that_are_written():
    model, tokens = built("vlp")
    table, pictures = rows()
    captions = reader("masked-lm", tokens, table, model.model).look(pictures, model.config, table)
    torch.manual_seed(0)
    batch = captions.batch(table[:4])
    assert batch["token_type_ids"].tolist() == [[4, 4, 5, 5, 5, 5]] * 4
    assert batch["visual_token_type_ids"].tolist() == [[4, 4]] * 4
    assert batch["ranks"].tolist() == [[0, 0, 1, 2, 3, 4]] * 4
    assert ((batch["labels"] != -100).sum(1) == 1).all()
    assert (batch["labels"][:, :2] == -100).all()
    whole = torch.where(batch["labels"] == -100, batch["input_ids"], batch["labels"])
    assert whole.tolist() == [[2, 3, *tokens.encode(row["caption"]).ids[1:]] for row in table[:4]]
    assert captions.collator.beginning(2, 3)["visual_token_type_ids"].tolist() == [[4] * 3] * 2


def test_what_makes_no_captions_is_refused():
    model, tokens = built("vlp")
    table, pictures = rows()
    with pytest.raises(InputError, match="has no mask token"):
        CaptionCollator.of(words(), model.config)
    with pytest.raises(InputError, match="end_token_id=3, mask_token_id=4"):
        CaptionCollator.of(tokens, model.config.replace(mask_token_id=5))
    with pytest.raises(InputError, match="end_token_id=2 is no token"):
        NextWordCollator.of(Tiny(), built("unimo")[0].config)
    other = zoo.create("uniter-base", task="masked-lm", **SIZES, visual_size=4)
    with pytest.raises(TaskError, match="Uniter learns masked words beside regions from batches"):
        evaluate(other, table, tokenizer=tokens, regions=pictures)
    with pytest.raises(TaskError, match="writes no captions"):
        zoo.pipeline("image-captioning", other, tokenizer=tokens, regions=lambda pictures: None)
    captions = reader("masked-lm", words(), table, built("unimo")[0].model).look(pictures, other.config, table)
    with pytest.raises(InputError, match="a caption is empty"):
        captions.batch([{"caption": " ", "image": "0"}])


class Tiny:
    """A tokenizer that knows the beginning alone."""

    def id_to_token(self, index):
        return "<s>" if index == 0 else None


# --- the next word of a text


def test_texts_are_learned_for_the_next_word_with_what_ends_them():
    backend = words().backend
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokens = Tokenizer(backend, special=SpecialTokens(pad="<pad>"), inputs=("input_ids", "attention_mask"))
    model = zoo.create(
        "gpt2", task="causal-lm", generator=torch.Generator().manual_seed(0), dropout=0.0, attention_dropout=0.0,
        **{**SIZES, "vocab_size": len(WORDS), "end_token_id": 2},
    )  # fmt: skip
    draw = random.Random(0)
    table = [{"text": f"a {draw.choice(['red dog', 'blue cat'])}"} for _ in range(32)]
    next_words = reader("causal-lm", tokens, table, model.model)
    batch = next_words.batch([{"text": "a red dog"}, {"text": "a"}])
    assert batch["input_ids"].tolist() == [[4, 5, 7, 2], [4, 2, 1, 1]]
    assert batch["labels"].tolist() == [[4, 5, 7, 2], [4, 2, -100, -100]]
    fit(model, table, tokenizer=tokens, steps=60, batch_size=16, lr=1e-2)
    found = evaluate(model, table, tokenizer=tokens)
    # of three words two are certain once the first is known
    assert found["perplexity"] == pytest.approx(math.exp(math.log(2) / 3), rel=0.1)
    assert found["accuracy"] == pytest.approx(5 / 6, abs=0.15)
    write = zoo.pipeline("causal-lm", model, tokenizer=tokens, max_new_tokens=8)
    assert write("a red")["text"] == "a red dog"
    counted = [float(zoo.score(model, None, torch.tensor([[4, 5, 7, 2]])).scores)]
    assert found["loss"] == pytest.approx(-counted[0] / 3, abs=0.3)


def test_a_tokenizer_that_frames_texts_is_left_to_it_and_long_texts_keep_no_end():
    model = zoo.create("gpt2", task="causal-lm", **{**SIZES, "vocab_size": len(WORDS), "end_token_id": 2})
    table = [{"text": "a red dog"}]
    batch = reader("causal-lm", words(), table, model.model).batch(table)
    assert batch["input_ids"].tolist() == [[0, 4, 5, 7, 2]]
    backend = words().backend
    backend.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    plain = Tokenizer(backend, special=SpecialTokens(pad="<pad>"), inputs=("input_ids", "attention_mask"))
    cls = supervision_of("causal-lm")
    cut = cls(plain, find_columns(table[0], cls.needed, cls.optional), {}, 3)
    cut.prepare(model.model)
    assert cut.batch(table)["input_ids"].tolist() == [[4, 5, 7]]
    with pytest.raises(InputError, match="fewer than two tokens"):
        cut.batch([{"text": ""}])
