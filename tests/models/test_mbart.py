"""BART and mBART against transformers in float64 over their configurations; their inputs and their
noise. How they write: tests/inference/test_search.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import zoo
from tests import oracle
from tests.strategies import batches, build, configs, examples, randomised, relative, small_config
from zoo.data.denoising import DenoisingNoise, TorchDraws, permute_sentences, poisson_lengths
from zoo.errors import ConfigError, InputError
from zoo.inference.generate import generate
from zoo.models.base.encoder_decoder import shift_right
from zoo.tasks.base import canonical_state
from zoo.tasks.losses import label_smoothed_loss

FAMILIES = {
    "mbart": ("hf-mbart", "MBartModel", "MBartForConditionalGeneration"),
    "bart": ("hf-bart", "BartModel", "BartForConditionalGeneration"),
}
TASK = "conditional-generation"


def close(mine: Tensor, theirs: Tensor, where: Tensor | None = None) -> None:
    mine, theirs = (x if where is None else x[where] for x in (mine, theirs))
    assert relative(mine, theirs) <= 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=examples(12), deadline=None, derandomize=True)
def test_both_stacks_are_transformers_stacks(family, data):
    layout, bare, _ = FAMILIES[family]
    config = data.draw(configs(family))
    batch = data.draw(batches(family, config, plain=True))
    ours = build(family, config, seed=data.draw(st.integers(0, 2**16)))
    theirs = oracle.taught(layout, oracle.hugging_face(layout, bare, config, {}), ours)
    given_ = {name: x.long() for name, x in batch.inputs.items()}
    reference = oracle.asked(theirs, given_, output_hidden_states=True, output_attentions=True)
    read, written = batch.real(), batch.real("decoder_attention_mask")
    for attentions in (False, True):
        with torch.no_grad():
            mine = ours(**batch.inputs, output_hidden_states=True, output_attentions=attentions)
        close(mine.last_hidden_state, reference.last_hidden_state, written)
        close(mine.encoder.last_hidden_state, reference.encoder_last_hidden_state, read)
        for a, b in zip(mine.hidden_states, reference.decoder_hidden_states, strict=True):
            close(a, b, written)
        for a, b in zip(mine.encoder.hidden_states, reference.encoder_hidden_states, strict=True):
            close(a, b, read)
    for a, b, real in (
        *((a, b, read) for a, b in zip(mine.encoder.attentions, reference.encoder_attentions, strict=True)),
        *((a, b, written) for a, b in zip(mine.cross_attentions, reference.cross_attentions, strict=True)),
    ):
        close(a.transpose(1, 2)[real], b.transpose(1, 2)[real])
    sees = written.cumsum(1) > 0  # theirs spreads a query without keys over all of them
    for a, b in zip(mine.attentions, reference.decoder_attentions, strict=True):
        close(a.transpose(1, 2)[written & sees], b.transpose(1, 2)[written & sees])


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=examples(8), deadline=None, derandomize=True)
def test_a_transformers_writer_loads_and_gives_its_scores_loss_and_gradients_from_labels_alone(family, data):
    layout, _, writer = FAMILIES[family]
    config = data.draw(configs(family))
    theirs = randomised(oracle.hugging_face(layout, writer, config, {}), data.draw(st.integers(0, 2**16)))
    theirs.final_logits_bias.normal_(generator=torch.Generator().manual_seed(0))
    for side in (
        theirs.model.encoder,
        theirs.model.decoder,
    ):  # transformers 5 unties these too where the output is untied; 4 did not
        side.embed_tokens.weight.data.copy_(theirs.model.shared.weight.data)
    ours = zoo.load(theirs.state_dict(), layout=layout, config=theirs.config.to_dict(), task=TASK)
    assert not ours.load_report.random
    batch = data.draw(batches(family, config, plain=True))
    source = {name: batch.inputs[name].long() for name in ("input_ids", "attention_mask") if name in batch.inputs}
    labels = batch.inputs["decoder_input_ids"].clone()
    labels[0, 1:] = -100
    mine = ours.eval()(**source, labels=labels)
    reference = oracle.asked(theirs.eval(), source, labels=labels, gradients=True)
    close(mine.logits, reference.logits)
    close(mine.loss, reference.loss)
    mine.loss.backward()
    reference.loss.backward()
    gradients = {name.removeprefix("model."): x.grad for name, x in ours.named_parameters()}
    translated = oracle.way_back(layout, ours, {**canonical_state(ours), **gradients})
    theirs_ = {name: x.grad for name, x in theirs.named_parameters() if x.grad is not None}
    largest = max(float(x.abs().max()) for x in theirs_.values())
    for name, gradient in theirs_.items():
        if "embed_tokens" not in name:  # a copy of the table where the output is untied
            assert float((translated[name] - gradient).abs().max()) <= 1e-9 * largest, name
    assert torch.equal(
        ours.model.decoder_inputs(labels)[:, 1:],
        labels[:, :-1].masked_fill(labels[:, :-1] == -100, config.pad_token_id),
    )


def test_a_text_without_a_stated_language_is_not_begun():
    model = build("mbart", small_config("mbart"), TASK)
    with pytest.raises(InputError, match="start_ids"):
        generate(model, torch.tensor([[4, 5, 2]]))
    begun = build("mbart", small_config("mbart", start_token_id=2), TASK)
    assert (generate(begun, torch.tensor([[4, 5, 2]]), max_length=4).sequences[:, 0] == 2).all()


def test_fairseq_s_layout_gives_its_files_back():
    from tests.references.case import golden_cases, load_case

    case = load_case(golden_cases("mbart/seq2seq-fairseq")[0])
    config = {**case.config, "activation_fn": "gelu"}
    model = zoo.load(case.weights, layout="fairseq-mbart", config=config, task=TASK)
    back = oracle.way_back("fairseq-mbart", model)
    for name, tensor in case.weights.items():
        assert name.endswith(".version") or torch.equal(back[name], tensor), name
    bare = zoo.load(case.weights, layout="fairseq-mbart", config=config)
    assert bare.num_parameters() == model.num_parameters()


def test_positions_outside_the_table_and_texts_too_long_are_refused():
    model = build("mbart", small_config("mbart"))
    ids = torch.full((1, 4), 3)
    with pytest.raises(InputError, match=r"position_ids must lie in 0\.\.9"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, -1]]), decoder_input_ids=ids)
    with pytest.raises(InputError, match="10 positions"):
        model(torch.full((1, 11), 3), decoder_input_ids=ids)
    with pytest.raises(InputError, match="decoder_input_ids is missing"):
        model(ids)


def test_the_last_label_comes_first_wherever_it_stands():
    labels = torch.tensor([[5, 6, 9, -100], [1, 7, 8, 9], [1, 1, -100, -100]])
    assert shift_right(labels, 1).tolist() == [[9, 5, 6, 9], [9, 1, 7, 8], [1, 1, 1, 1]]
    assert shift_right(labels, 1, 2).tolist() == [[2, 5, 6, 9], [2, 1, 7, 8], [2, 1, 1, 1]]


# -- noise -------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from([2, 4, 5, 6, 7, 8]), min_size=1, max_size=20),
    st.sampled_from([-1, 0, 1]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 99),
)
@settings(max_examples=examples(60), deadline=None, derandomize=True)
def test_noise_keeps_both_ends_and_masks_the_budget(words, replace_length, share, seed):
    tokens = [0, *words, 50]
    noise = DenoisingNoise(
        mask_id=60, vocab_size=40, mask_share=share, replace_length=replace_length, random_share=0.3, insert_share=0.1
    )
    noised = noise(tokens, TorchDraws(torch.Generator().manual_seed(seed)))
    assert (noised[0], noised[-1]) == (0, 50)
    if share == 0:
        kept = permute_sentences(tokens, 2, TorchDraws(torch.Generator().manual_seed(seed)))
        rest = iter(noised)
        assert all(any(token == other for other in rest) for token in kept), "insertion leaves the others in order"


def test_a_permutation_moves_whole_sentences():
    tokens = [0, 4, 5, 2, 6, 2, 7, 8, 9, 2, 50]
    mixed = permute_sentences(tokens, 2, TorchDraws(torch.Generator().manual_seed(0)))
    parts = " ".join(map(str, mixed[1:-1])).split(" 2")
    assert sorted(mixed) == sorted(tokens)
    assert sorted(part.strip() for part in parts if part.strip()) == ["4 5", "6", "7 8 9"]
    assert mixed != tokens


def test_whole_words_go_together():
    noise = DenoisingNoise(
        mask_id=60, vocab_size=40, mask_share=1.0, permute_share=0.0, masking="word", word_starts={4, 5}
    )
    assert noise([0, 4, 9, 9, 5, 9, 50]) == [0, 60, 60, 50]


def test_span_lengths_are_poisson_s():
    probabilities = poisson_lengths(3.5)
    assert len(probabilities) == 19
    assert abs(sum(probabilities) - 1) < 1e-12
    assert abs(sum(n * p for n, p in enumerate(probabilities)) - 3.5) < 1e-5


def test_noise_that_cannot_be_meant_is_refused():
    with pytest.raises(ConfigError, match="replace_length"):
        DenoisingNoise(mask_id=1, vocab_size=4, replace_length=2)
    with pytest.raises(ConfigError, match="masking"):
        DenoisingNoise(mask_id=1, vocab_size=4, masking="words")
    with pytest.raises(InputError, match="2 tokens"):
        DenoisingNoise(mask_id=1, vocab_size=4)([0, 2])


def test_smoothing_of_zero_is_cross_entropy_and_its_mean_is_the_sum_over_the_count():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(7, (3, 4), generator=generator)
    labels[0, 2:] = -100
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert torch.allclose(label_smoothed_loss(logits, labels, 0.0), plain)
    assert torch.allclose(
        label_smoothed_loss(logits, labels, 0.2, reduction="sum") / 10, label_smoothed_loss(logits, labels, 0.2)
    )
