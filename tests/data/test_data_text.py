"""Text as windows of token ids, against a naive twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privfed.data import Population, require_text_model, transform
from privfed.data.text import (
    BEGIN,
    CHARACTER_TOKENS,
    CHARACTERS,
    END,
    PAD,
    SPECIAL,
    UNKNOWN,
    character_ids,
    windows,
    word_ids,
    word_vocabulary,
)
from privfed.errors import DataError, SettingError


@given(ids=st.lists(st.integers(SPECIAL, 255), max_size=12), length=st.integers(1, 6))
@settings(deadline=None, max_examples=80)
def test_windows_are_those_of_a_loop(ids: list[int], length: int) -> None:
    features, labels = windows(np.array(ids, np.uint8), length)
    tokens = [BEGIN, *ids, END]
    assert labels.tolist() == tokens[1:]
    for place, row in enumerate(features.tolist(), start=1):
        assert row == ([PAD] * length + tokens[:place])[-length:]
    assert (features.dtype, labels.dtype) == (np.uint8, np.int32)


@given(st.text(CHARACTERS))
def test_characters_can_be_told_apart(text: str) -> None:
    ids = character_ids(text.encode())
    assert all(SPECIAL <= i < CHARACTER_TOKENS for i in ids)
    assert "".join(CHARACTERS[i - SPECIAL] for i in ids) == text


def test_other_characters_are_unknown_or_spaces() -> None:
    assert character_ids("é\x00".encode()).tolist() == [UNKNOWN] * 3
    assert character_ids(b"\t\r").tolist() == character_ids(b"  ").tolist()


def test_words_beyond_a_byte_are_unknown() -> None:
    vocabulary = word_vocabulary([f"w{i}" for i in range(1000)])
    assert len(vocabulary) == 252
    assert word_ids(b"w0  w251 w252", vocabulary).tolist() == [SPECIAL, 255, UNKNOWN]


def population(**changes: object) -> Population:
    tokens = np.array([[1, 2], [3, 4]], np.uint8)
    labels = np.zeros(2, np.int32)
    fields: dict[str, object] = {"features": tokens, "tokens": 5} | changes
    return Population(
        labels=labels,
        offsets=np.array([0, 2]),
        test_features=fields["features"],  # type: ignore[arg-type]  # whatever is given
        test_labels=labels,
        name="text",
        classes=5,
        **fields,  # type: ignore[arg-type]  # whatever is given
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 4}, r"token ids lie in 0…3 \(got 4\)"),
        ({"tokens": 257}, "of 256 tokens at most"),
        ({"features": np.zeros((2, 2), np.float32)}, "are token ids"),
        ({"features": np.zeros((2, 2, 1, 1), np.uint8)}, "are token ids"),
    ],
)
def test_other_tokens_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        population(**changes)


def test_the_fingerprint_tells_tokens_from_numbers() -> None:
    assert population().fingerprint != population(tokens=None).fingerprint != population(tokens=6).fingerprint


def test_text_and_text_models_go_together() -> None:
    with pytest.raises(SettingError, match=r"model\.name: .* mlp takes numbers \(got 'mlp'\).*one_hot"):
        require_text_model(population(), "mlp")
    with pytest.raises(SettingError, match="no token ids"):
        require_text_model(transform(population(), "one_hot"), "transformer")
    require_text_model(population(), "transformer")
    require_text_model(population(), "mine:build")
    require_text_model(transform(population(), "one_hot"), "mlp")


def test_an_own_model_gets_ids_back_exactly() -> None:
    """The scaling that the refusal names: ids from what the engine gives, cut to whole numbers."""
    ids = np.arange(256, dtype=np.uint8)
    given_to_model = ids.astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal((given_to_model * np.float32(255) + np.float32(0.5)).astype(int), ids)
