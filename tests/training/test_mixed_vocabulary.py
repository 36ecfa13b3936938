"""Extreme's mixed vocabularies and shared projections: cuts, joint ids, widened tables, losses
against loops.
"""

from __future__ import annotations

import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

import zoo
from tests.strategies import randomised
from zoo.data.collate import MaskedLMCollator
from zoo.errors import ConfigError, InputError, TaskError
from zoo.tokenization import SpecialTokens, Tokenizer
from zoo.training.mixed_vocabulary import MixedTraining, MixedVocabulary, SharedProjections

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece(*pieces: str, lower: bool = True) -> Tokenizer:
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL, *pieces))}
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=lower),
        pre_tokenizers.BertPreTokenizer(),
    )
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    roles = SpecialTokens(pad="[PAD]", cls="[CLS]", sep="[SEP]", mask="[MASK]", unk="[UNK]")
    return Tokenizer(backend, special=roles)


LETTERS = [*"abcd", *(f"##{letter}" for letter in "abcd")]
TEACHER = wordpiece(*LETTERS, "abc", "##cd", "dab")
STUDENT = wordpiece("ab", *LETTERS[::-1], "##bcd", "abc")
MIXED = MixedVocabulary(TEACHER, STUDENT)
NAMES = {index: piece for piece, index in MIXED._joint.items()}


def model(
    vocabulary: int, hidden: int, layers: int = 2, task: str | None = "masked-lm", seed: int = 0
) -> torch.nn.Module:
    sizes = {
        "num_heads": 2,
        "intermediate_size": 3 * hidden,
        "max_positions": 16,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    made = zoo.create(
        "bert-base",
        task=task,
        dtype=torch.float64,
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_layers=layers,
        **sizes,
    )
    return randomised(made, seed)


words = st.lists(st.text("abcd", min_size=1, max_size=6), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=25, deadline=None)
@given(text=words, seed=st.integers(0, 99))
def test_each_word_is_cut_wholly_by_one_of_the_two_vocabularies(text, seed):
    cut = MIXED.cut(text, 0.5, torch.Generator().manual_seed(seed))
    assert (NAMES[cut.ids[0]], NAMES[cut.ids[-1]], cut.words[0], cut.words[-1]) == ("[CLS]", "[SEP]", None, None)
    for place, word in enumerate(text.split()):
        pieces = [NAMES[index] for index, at in zip(cut.ids, cut.words, strict=True) if at == place]
        assert pieces in [[t.value for t in each.backend.model.tokenize(word)] for each in (TEACHER, STUDENT)]
        assert "".join(piece.removeprefix("##") for piece in pieces) == word


@settings(max_examples=25, deadline=None)
@given(text=words)
def test_probability_0_is_the_teachers_own_cut_and_1_the_students(text):
    assert MIXED.cut(text, 0.0).ids == TEACHER.encode(text).ids
    assert MIXED.cut(text, 1.0).ids == MIXED.of_student[STUDENT.encode(text).ids].tolist()


def test_the_joint_vocabulary_holds_the_teachers_ids_first_and_each_piece_once():
    assert MIXED.size == TEACHER.vocab_size + 2  # ab and ##bcd
    assert [NAMES[TEACHER.vocab_size + k] for k in range(2)] == ["ab", "##bcd"]
    assert all(NAMES[int(MIXED.of_student[i])] == STUDENT.id_to_token(i) for i in range(STUDENT.vocab_size))
    assert [bool(MIXED.starts[i]) for i in (5, 9, MIXED.size - 2, MIXED.size - 1)] == [True, False, True, False]


def test_about_half_of_the_words_go_to_the_student():
    cut = MIXED.cut("abcd " * 4000, 0.5, torch.Generator().manual_seed(0))
    share = (
        sum(NAMES[index] == "abc" for index in cut.ids) / 4000
    )  # the teacher cuts abc ##d, the student too: look at the next
    assert share == 1.0
    cut = MIXED.cut("abd " * 4000, 0.5, torch.Generator().manual_seed(0))
    assert sum(NAMES[index] == "ab" for index in cut.ids) / 4000 == pytest.approx(0.5, abs=0.03)


def test_a_widened_teacher_answers_as_before_and_new_pieces_start_as_means():
    teacher = model(TEACHER.vocab_size, 8)
    wide = MIXED.widen(teacher)
    batch = TEACHER(["abcd dab", "b"])
    first, second = teacher(**batch).prediction_logits, wide(**batch).prediction_logits
    assert torch.allclose(second[..., : TEACHER.vocab_size], first, rtol=1e-12, atol=1e-12)
    table, old = wide.model.embeddings.token.weight, teacher.model.embeddings.token.weight
    pieces = [TEACHER.token_to_id("a"), TEACHER.token_to_id("##b")]
    assert torch.allclose(table[TEACHER.vocab_size], old[pieces].mean(0))


def test_projection_losses_are_those_of_the_formula_by_hand():
    teacher, student = MIXED.widen(model(TEACHER.vocab_size, 8)), model(STUDENT.vocab_size, 4, seed=3)
    shared = SharedProjections(teacher, student, MIXED, torch.Generator().manual_seed(1))
    u, v = shared.up.detach(), shared.down.detach()
    down = up = 0.0
    theirs, mine = dict(teacher.model.named_parameters()), dict(student.model.named_parameters())
    for name, w in mine.items():
        if name.startswith("pooler"):
            continue
        t = theirs[name]
        if name == "embeddings.token.weight":
            rows = [(MIXED._joint[STUDENT.id_to_token(i)], i) for i in range(STUDENT.vocab_size)]
            t, w = t[[a for a, _ in rows]], w[[b for _, b in rows]]
        axes = [i for i in range(w.dim()) if t.shape[i] != w.shape[i]]
        small, large = t, w
        for axis in axes:
            blocks_down = torch.block_diag(*[v] * (t.shape[axis] // 8))
            blocks_up = torch.block_diag(*[u] * (w.shape[axis] // 4))
            small = torch.tensordot(blocks_down, small, dims=([1], [axis])).movedim(0, axis)
            large = torch.tensordot(blocks_up, large, dims=([1], [axis])).movedim(0, axis)
        down, up = down + float(((small - w) ** 2).sum().detach()), up + float(((t - large) ** 2).sum().detach())
    found = shared()
    assert float(found[0].detach()) == pytest.approx(down, rel=1e-10)
    assert float(found[1].detach()) == pytest.approx(up, rel=1e-10)
    assert all(name.startswith("pooler.") for name in shared.left_out)


def test_a_feed_forward_of_another_ratio_is_left_out_and_named():
    student = zoo.create(
        "bert-base", vocab_size=STUDENT.vocab_size, hidden_size=4, num_layers=2, num_heads=2, intermediate_size=7
    )
    teacher = MIXED.widen(model(TEACHER.vocab_size, 8, task=None)).float()
    shared = SharedProjections(teacher, student, MIXED)
    assert {name.split(".")[3] for name in shared.left_out if name.startswith("encoder")} == {"feed_forward"}
    assert "encoder.blocks.0.attention.query.weight" in shared.pairs


def test_dual_training_reaches_both_models_and_the_projections_and_lowers_its_loss():
    teacher, student = MIXED.widen(model(TEACHER.vocab_size, 8)), model(STUDENT.vocab_size, 4, seed=3)
    shared = SharedProjections(teacher, student, MIXED, torch.Generator().manual_seed(1))
    training = MixedTraining(teacher, student, shared, epsilon=0.01)
    texts = ["abcd dab ab", "cab bad"]
    generator = torch.Generator().manual_seed(0)
    special = TEACHER.special_token_ids
    cuts = [{"input_ids": MIXED.cut(text, 0.5, generator).ids} for text in texts]
    mixed = MaskedLMCollator(mask_id=4, vocab_size=MIXED.size, special_ids=special)(cuts, generator)
    plain = [{"input_ids": STUDENT.encode(text).ids} for text in texts]
    own = MaskedLMCollator(mask_id=4, vocab_size=STUDENT.vocab_size, special_ids=special)(plain, generator)
    optimizer = torch.optim.Adam(training.parameters(), lr=0.01)
    losses = []
    for _ in range(12):
        loss, parts = training(mixed, own)
        assert set(parts) == {"teacher", "student", "down", "up"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert shared.up.grad is not None
    assert teacher.model.embeddings.token.weight.grad.abs().max() > 0


def test_the_students_table_starts_from_the_teachers_taken_down():
    teacher, student = MIXED.widen(model(TEACHER.vocab_size, 8)), model(STUDENT.vocab_size, 4)
    shared = SharedProjections(teacher, student, MIXED)
    shared.start_table()
    row = STUDENT.token_to_id("ab")
    expected = shared.down @ teacher.model.embeddings.token.weight[MIXED.of_student[row]]
    assert torch.allclose(student.model.embeddings.token.weight[row], expected)


def test_what_can_not_be_mixed_is_refused():
    with pytest.raises(InputError, match="split text differently"):
        MixedVocabulary(TEACHER, wordpiece("a", lower=False)).cut("A b")
    with pytest.raises(ConfigError, match="probability"):
        MIXED.cut("a", 1.5)
    with pytest.raises(TaskError, match="layer with layer"):
        SharedProjections(model(MIXED.size, 8), model(STUDENT.vocab_size, 4, layers=1), MIXED)
    with pytest.raises(ConfigError, match="SharedProjections"):
        MixedTraining(model(5, 4), model(5, 4), None)
    bytes_ = Tokenizer(tokenizers.Tokenizer(models.BPE()), special=SpecialTokens())
    with pytest.raises(ConfigError, match="WordPiece"):
        MixedVocabulary(bytes_, STUDENT)
