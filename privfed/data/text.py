"""Text as windows of token ids: what comes before a token are the features, the token is the label."""

from __future__ import annotations

import string
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privfed.data.population import Labels, Population
from privfed.errors import SettingError

PAD, UNKNOWN, BEGIN, END = range(4)
"""Ids before those of characters or words: no token, one outside the vocabulary, and the ends of a text."""
SPECIAL = 4

CHARACTERS = "".join(chr(code) for code in range(32, 127)) + "\n"
"""Printable ASCII: public, so that the vocabulary tells nothing of the data."""
CHARACTER_TOKENS = SPECIAL + len(CHARACTERS)

SEQUENCE_LENGTH = 20
"""Of a window, when the settings give none; TFF's Stack Overflow baseline cuts sentences at 20 words."""


def _byte_ids() -> NDArray[np.uint8]:
    ids = np.full(256, UNKNOWN, np.uint8)
    ids[[ord(character) for character in CHARACTERS]] = np.arange(SPECIAL, CHARACTER_TOKENS)
    # Carriage return and tab stand where a space or a line's end would.
    ids[[ord(character) for character in string.whitespace if character not in CHARACTERS]] = ids[ord(" ")]
    return ids


_ID_OF_BYTE = _byte_ids()


def character_ids(text: bytes) -> NDArray[np.uint8]:
    """Ids of characters, one for each byte of the text."""
    return _ID_OF_BYTE[np.frombuffer(text, np.uint8)]


def word_ids(text: bytes, vocabulary: dict[str, int]) -> NDArray[np.uint8]:
    """Ids of words that spaces part; ``UNKNOWN`` for those outside the vocabulary."""
    words = text.decode("utf-8", "replace").split()
    return np.array([vocabulary.get(word, UNKNOWN) for word in words], np.uint8)


def word_vocabulary(words: Sequence[str]) -> dict[str, int]:
    """Ids of the words given, most frequent first, as many as a byte tells apart beside the special ones."""
    return {word: SPECIAL + place for place, word in enumerate(words[: 256 - SPECIAL])}


def windows(ids: NDArray[np.uint8], length: int) -> tuple[NDArray[np.uint8], Labels]:
    """One example for each token of a text, its end included: ``[len(ids) + 1, length]`` and ``[len(ids) + 1]``.

    Features are the ``length`` tokens before it, ``BEGIN`` first and ``PAD`` before that; the label is its id.
    """
    padded = np.concatenate([np.full(length - 1, PAD), [BEGIN], ids, [END]]).astype(np.uint8)
    before = np.lib.stride_tricks.sliding_window_view(padded, length)[:-1]
    return before, padded[length:].astype(np.int32)


TEXT_MODEL = "transformer"
"""The zoo's model for text; it takes nothing else."""


def require_text_model(population: Population, model: str) -> None:
    """Refuse the zoo's models that take numbers for token ids, whose size means nothing, and the other way round.

    Raises:
        SettingError: The examples are token ids, and the model is neither for text nor a builder of the user's;
            or it is for text and they are not.
    """
    if population.tokens is not None and model != TEXT_MODEL and ":" not in model:
        raise SettingError(
            f"the examples of {population.name} are token ids, and {model} takes numbers",
            where="model.name",
            value=model,
            remedy=f'Take "{TEXT_MODEL}"; or set model.features = "one_hot" (then softmax and mlp fit), or name a '
            "Keras builder of your own that begins with Rescaling(255.0, offset=0.5): it is given ids divided by "
            "255",
        )
    if population.tokens is None and model == TEXT_MODEL:
        raise SettingError(
            f"the examples of {population.name} are no token ids",
            where="model.name",
            value=model,
            remedy="Use softmax, mlp, or for images lenet or cnn",
        )
