"""Words as tokens: every token leads back to its word."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.data.aligned import encode_words
from zoo.errors import InputError
from zoo.tokenization.wordpiece import wordpiece

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdexyz", *(f"##{c}" for c in "abcdexyz"), "ab", "##cd", "."]


@pytest.fixture(scope="module")
def tokenizer():
    return wordpiece({token: number for number, token in enumerate(VOCAB)})


words = st.lists(st.text("abcdexyz.", min_size=1, max_size=6), min_size=1, max_size=8)


@given(words)
def test_the_first_token_of_each_word_is_its_own(tokenizer, given_words):
    encoded = encode_words(tokenizer, given_words)
    alone = [tokenizer.backend.encode(word, add_special_tokens=False).ids for word in given_words]
    assert list(encoded.ids[1:-1]) == [token for word in alone for token in word]
    place = 1
    for first, pieces in zip(encoded.first, alone, strict=True):
        assert first == place
        place += len(pieces)


def test_words_that_are_cut_off_or_empty_have_no_token(tokenizer):
    encoded = encode_words(tokenizer, ["abc", "\u200d", "x", "yz"], max_length=5)
    assert encoded.first[0] == 1
    assert encoded.first[1] is None or tokenizer.id_to_token(encoded.ids[encoded.first[1]]) == "[UNK]"
    assert encoded.first[-1] is None
    assert len(encoded.ids) == 5


def test_no_room_is_said(tokenizer):
    with pytest.raises(InputError, match="at least"):
        encode_words(tokenizer, ["a"], max_length=2)
