"""TensorFlow Federated's simulation sets, with the clients they come with."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privfed.data.dataset import Dataset, as_images
from privfed.data.holdout import draw_clients
from privfed.data.network import bounded_network, why_unreachable
from privfed.data.population import Features, Labels, as_float
from privfed.data.text import (
    CHARACTER_TOKENS,
    SEQUENCE_LENGTH,
    SPECIAL,
    character_ids,
    windows,
    word_ids,
    word_vocabulary,
)
from privfed.errors import DataError, SettingError

SYNTHETIC = "_synthetic"
"""Ends the name of a set's few bundled examples, made up by TFF to try things out, without any download."""

_ORIGIN = "https://storage.googleapis.com/tff-datasets-public/"
_COUNTS = Path("datasets", "stackoverflow.word_count.tar.bz2")
"""Where Keras keeps the archive of word counts, below the cache."""
_BATCH = 512

Examples = tuple[NDArray[Any], Labels]


@dataclass(frozen=True)
class TffSet:
    """One simulation set.

    Attributes:
        module: Of ``tff.simulation.datasets``.
        file: That its cache holds.
        holds: In words, with the numbers that TFF documents.
        classes: Number of labels; of text, of tokens, which a vocabulary of words gives.
        image: Key of the images; ``None`` for text.
        text: Key of the texts; ``None`` for images.
        words: Whether tokens are words or characters.
        options: For TFF's ``load_data``.
        same_clients: Whether the test set is of the clients of the training set.
    """

    module: str
    file: str
    holds: str
    classes: int
    image: str | None = None
    text: str | None = None
    words: bool = False
    options: tuple[tuple[str, Any], ...] = ()
    same_clients: bool = True

    @property
    def files(self) -> tuple[str, ...]:
        """All that the cache must hold, relative to it."""
        return (self.file, str(_COUNTS)) if self.words else (self.file,)


SETS: dict[str, TffSet] = {
    "emnist": TffSet(
        "emnist",
        "emnist_all.sqlite",
        "341,873 handwritten digits by 3,383 writers, 28×28, dark on white",
        10,
        image="pixels",
        options=(("only_digits", True),),
    ),
    "emnist_all": TffSet(
        "emnist",
        "emnist_all.sqlite",
        "671,585 handwritten digits and letters by 3,400 writers, 28×28, dark on white",
        62,
        image="pixels",
        options=(("only_digits", False),),
    ),
    "cifar100": TffSet(
        "cifar100",
        "cifar100.sqlite",
        "50,000 colour images of 500 made-up clients, 32×32",
        100,
        image="image",
        same_clients=False,
    ),
    "shakespeare": TffSet(
        "shakespeare",
        "shakespeare.sqlite",
        "lines of 715 characters of plays; the next character is the label",
        CHARACTER_TOKENS,
        text="snippets",
    ),
    "stackoverflow": TffSet(
        "stackoverflow",
        "stackoverflow.sqlite",
        "sentences of 342,477 users; the next word is the label",
        256,
        text="tokens",
        words=True,
    ),
}


def usual_cache(cache_dir: Path | None = None) -> Path:
    """``cache_dir``, or where TFF keeps downloaded sets."""
    return (cache_dir or Path("~/.tff")).expanduser()


def load_tff(
    name: str,
    cache_dir: Path | None = None,
    *,
    clients: int | None = None,
    seed: int = 0,
    sequence_length: int = SEQUENCE_LENGTH,
) -> Dataset:
    """The simulation set ``name``, or with ``_synthetic`` at its end the few examples that TFF bundles for it.

    Clients are in the order of TFF's ids. Their test examples are the test set, except of ``cifar100``, whose test
    set belongs to nobody here. Images of which nothing is lost are kept as bytes. Texts are cut into windows of
    token ids (``privfed.data.text``): of printable ASCII for ``shakespeare``, and for ``stackoverflow`` of the 252
    most frequent words, which TFF publishes with the set. A synthetic set is its own test set: it shows that
    things run, and measures nothing.

    Args:
        name: In ``SETS``.
        cache_dir: Where TFF keeps what it downloads; ``~/.tff`` when not given.
        clients: Read so many of them, drawn by ``seed``; ``stackoverflow`` needs it.
        seed: Of the draw, the one of the partition ``natural``.
        sequence_length: Tokens in a window.

    Raises:
        SettingError: An unknown name; more clients than there are; no limit for a set that needs one.
        DataError: Neither in the cache nor to be downloaded; damaged.
    """
    synthetic = name.endswith(SYNTHETIC)
    known = SETS.get(name.removesuffix(SYNTHETIC))
    if known is None or name == f"emnist_all{SYNTHETIC}":
        bundled = [f"{key}{SYNTHETIC}" for key in SETS if key != "emnist_all"]
        raise SettingError(
            "names no simulation set of TensorFlow Federated",
            where="data.source",
            value=f"tff:{name}",
            remedy=f"Known: {', '.join([*SETS, *bundled])}",
        )
    if sequence_length < 1:
        raise SettingError("must be at least 1", where="data.sequence_length", value=sequence_length)
    if known.words and not synthetic and clients is None:
        raise SettingError(
            f"is missing: tff:{name} has 342,477 clients, more than one machine holds",
            where="data.clients",
            remedy='Say how many to draw, with data.partition = "natural"',
        )
    source, words = _bundled(known) if synthetic else _downloaded(known, name, usual_cache(cache_dir))
    train, test = source
    ids = _drawn(train.client_ids, clients, seed)
    vocabulary = word_vocabulary(words)
    decode = _decoder(known, vocabulary, sequence_length)
    try:
        held = [decode(train, client) for client in ids]
        ours = set(ids)
        tested = [c for c in test.client_ids if c in ours] if known.same_clients else test.client_ids
        examples = [decode(test, client) for client in sorted(tested)]
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - TensorFlow raises its own kinds for records that are cut or altered
        raise _damaged(name, usual_cache(cache_dir) / known.file, error) from None
    if not examples:
        raise DataError("the clients drawn have no test example", where=f"tff:{name}", remedy="Draw more clients")
    features, labels = _stacked(held, known)
    test_features, test_labels = _stacked(examples, known)
    if features.dtype != test_features.dtype:
        features, test_features = as_float(features), as_float(test_features)
    tokens = (SPECIAL + len(vocabulary) if known.words else CHARACTER_TOKENS) if known.text else None
    sizes = np.array([len(part[1]) for part in held], np.int64)
    return Dataset(
        features,
        labels,
        test_features,
        test_labels,
        f"tff:{name}",
        tokens or known.classes,
        train_offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)]),
        tokens=tokens,
    )


def describe_tff(cache_dir: Path | None, installed: bool) -> list[dict[str, Any]]:
    """Rows for ``privfed.data.describe``; looks at names of files only."""
    cache = usual_cache(cache_dir)
    return [
        {
            "source": f"tff:{name}",
            "holds": f"{known.holds}; kept in {cache}",
            "here": installed and all((cache / file).is_file() for file in known.files),
        }
        for name, known in SETS.items()
    ]


def _bundled(known: TffSet) -> tuple[tuple[Any, Any], list[str]]:
    module = _module(known)
    data = module.get_synthetic()
    return (data, data), list(module.get_synthetic_word_counts()) if known.words else []


def _downloaded(known: TffSet, name: str, cache: Path) -> tuple[tuple[Any, Any], list[str]]:
    module = _module(known)
    path = cache / known.file
    try:
        with _quiet(), bounded_network():
            if not path.is_file():
                _download(known, module, path)
            words = _words(module, cache) if known.words else []
    except Exception as error:  # noqa: BLE001 - sockets, urllib, LZMA and Keras fail each in its way
        raise DataError(
            f"the simulation set {name} is not in {cache} and cannot be downloaded: {_said(error)}",
            where="data.source",
            value=f"tff:{name}",
            remedy=f"Set data.data_dir to the folder that holds {' and '.join(known.files)}, or copy that from "
            "~/.tff of a machine with a network; to try things out, "
            f'data.source = "tff:{known.module}{SYNTHETIC}" needs none',
        ) from None
    try:
        loaded = module.load_data(cache_dir=str(cache), **dict(known.options))
    except Exception as error:  # noqa: BLE001 - SQLite's errors and TFF's own
        raise _damaged(name, path, error) from None
    # Stack Overflow has held-out users between its training and its test set.
    return (loaded[0], loaded[-1]), words


def _download(known: TffSet, module: Any, path: Path) -> None:
    """Through a folder of its own: TFF would take what a download that was cut off left for the whole."""
    _require_network()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="incomplete.", dir=path.parent) as part:
        module.load_data(cache_dir=part, **dict(known.options))
        os.replace(Path(part) / known.file, path)


def _words(module: Any, cache: Path) -> list[str]:
    if not (cache / _COUNTS).is_file():
        _require_network()
    return list(module.load_word_counts(str(cache), 256 - SPECIAL))


def _require_network() -> None:
    reason = why_unreachable(_ORIGIN)
    if reason:
        raise ConnectionError(f"{_ORIGIN} cannot be reached: {reason}")


def _module(known: TffSet) -> Any:
    import tensorflow_federated as tff

    return getattr(tff.simulation.datasets, known.module)


def _drawn(ids: list[str], clients: int | None, seed: int) -> list[str]:
    ids = sorted(ids)
    if clients is None:
        return ids
    if clients > len(ids):
        raise SettingError(
            f"there are more clients than the {len(ids):,} of the data",
            where="data.clients",
            value=clients,
            remedy="Make it smaller, or remove it to take all",
        )
    return [ids[client] for client in draw_clients(len(ids), clients, seed)]


def _decoder(known: TffSet, vocabulary: dict[str, int], length: int) -> Callable[[Any, str], Examples]:
    """A function from TFF's ``ClientData`` and an id to features and labels."""

    def images(data: Any, client: str) -> Examples:
        batches = list(_batches(data, client))
        pixels = np.concatenate([batch[known.image] for batch in batches])
        labels = np.concatenate([batch["label"] for batch in batches])
        return _as_bytes(as_images(pixels, f"tff:{known.module}, client {client}")), labels.astype(np.int32)

    def texts(data: Any, client: str) -> Examples:
        lines = [line for batch in _batches(data, client) for line in batch[known.text]]
        cut = [
            windows(word_ids(line, vocabulary) if known.words else character_ids(line), length) for line in lines
        ]
        return np.concatenate([part[0] for part in cut]), np.concatenate([part[1] for part in cut])

    return images if known.image else texts


def _batches(data: Any, client: str) -> Iterator[Any]:
    batches: Iterator[Any] = data.create_tf_dataset_for_client(client).batch(_BATCH).as_numpy_iterator()
    return batches


def _as_bytes(pixels: Features) -> Features:
    """Pixels as bytes where they are multiples of 1/255, at a quarter of the memory."""
    if pixels.dtype == np.uint8:
        return pixels
    levels = np.rint(pixels * 255)
    exact = np.isfinite(pixels).all() and np.abs(levels / 255 - pixels).max(initial=0) < 1e-6
    return levels.astype(np.uint8) if exact and levels.min() >= 0 and levels.max() <= 255 else pixels


def _stacked(parts: list[Examples], known: TffSet) -> Examples:
    features = [part[0] for part in parts]
    if known.image and len({part.dtype for part in features}) > 1:
        features = [as_float(part) for part in features]
    return np.concatenate(features), np.concatenate([part[1] for part in parts])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress goes to a terminal's standard error or nowhere: standard output belongs to results."""
    sink = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield


def _damaged(name: str, path: Path, error: Exception) -> DataError:
    return DataError(
        f"the simulation set {name} is damaged: {_said(error)}",
        where=str(path),
        remedy="Remove the file; it is downloaded again",
    )


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else "no reason given"
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:199] + '…'}"
