"""What a report's scores were computed from, in a file beside it, for ``privfed verify`` to compute them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privfed.audit.empirical import Seen, Vantage
from privfed.audit.membership import MembershipInference, judge
from privfed.audit.one_shot import RoundScores
from privfed.errors import PrivFedError
from privfed.files import replacing
from privfed.transcript import Observer

if TYPE_CHECKING:
    from attacks import AttackOutcome

MEASUREMENTS = "measurements.npz"
Image = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Picture:
    """What an attack's scores are of.

    Attributes:
        original: ``[*shape]`` in [0, 1].
        reconstruction: Likewise.
        fitted: By the name of a trivial guess, the example that it fits best.
    """

    original: Image
    reconstruction: Image
    fitted: Mapping[str, Image]

    @classmethod
    def of(cls, outcome: AttackOutcome) -> Picture | None:
        """``None`` of a failure, and of text."""
        if outcome.original is None or outcome.reconstruction is None or outcome.fitted is None:
            return None
        return cls(outcome.original, outcome.reconstruction, outcome.fitted)


@dataclass(frozen=True, eq=False)
class Measurements:
    """All of them.

    Attributes:
        pictures: By attack, in the report's order.
        mean: Mean of the test examples ``[*shape]``, one of the trivial guesses.
        membership: In the report's order.
        canaries: What each observer scored them on; ``None`` without any.
    """

    pictures: Sequence[Picture | None]
    mean: Image
    membership: Sequence[MembershipInference]
    canaries: Seen | None


def save(path: Path, found: Measurements) -> None:
    """Write them, without pickles."""
    arrays: dict[str, NDArray[Any]] = {"mean": found.mean, "attacks": np.array(len(found.pictures))}
    for i, picture in enumerate(found.pictures):
        if picture is not None:
            arrays[f"attack/{i}/original"] = picture.original
            arrays[f"attack/{i}/reconstruction"] = picture.reconstruction
            arrays |= {f"attack/{i}/fitted/{name}": image for name, image in picture.fitted.items()}
    for i, one in enumerate(found.membership):
        at = f"membership/{i}"
        arrays[f"{at}/names"] = np.array([one.method, one.unit, one.assumption])
        arrays |= {f"{at}/{name}": getattr(one, name) for name in ("scores", "is_member", "owners")}
        arrays[f"{at}/alike"] = np.array(one.alike)
    if found.canaries is not None:
        arrays |= _canaries(found.canaries)
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def _canaries(seen: Seen) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "canaries/included": seen.included,
        "canaries/size": np.array([seen.dimension, seen.rounds]),
    }
    for observer, vantage in seen.vantages.items():
        at = f"canaries/{observer.value}"
        arrays |= {f"{at}/sees": np.array(vantage.sees), f"{at}/told": np.array(vantage.told)}
        arrays[f"{at}/scores"] = vantage.scores
        if vantage.rounds is not None:
            arrays[f"{at}/rounds"] = np.array(astuple(vantage.rounds))
        if vantage.fitted is not None:
            arrays |= {f"{at}/fit": np.array(vantage.fitted[0]), f"{at}/fitted": vantage.fitted[1]}
    return arrays


def load(path: Path) -> Measurements:
    """Read what ``save`` wrote.

    Raises:
        PrivFedError: The file is missing or damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        count = int(arrays["attacks"])
        membership = [_membership(arrays, f"membership/{i}") for i in range(_many(arrays, "membership"))]
        pictures = [_picture(arrays, f"attack/{i}") for i in range(count)]
        return Measurements(pictures, arrays["mean"], membership, _seen(arrays))
    except Exception as error:  # noqa: BLE001 - whatever NumPy and zlib make of a damaged file
        raise PrivFedError(f"cannot be read: {type(error).__name__}: {error}", where=str(path)) from None


def _many(arrays: Arrays, kind: str) -> int:
    return len({name.split("/")[1] for name in arrays if name.startswith(f"{kind}/")})


def _picture(arrays: Arrays, at: str) -> Picture | None:
    if f"{at}/original" not in arrays:
        return None
    start = f"{at}/fitted/"
    fitted = {name.removeprefix(start): image for name, image in arrays.items() if name.startswith(start)}
    return Picture(arrays[f"{at}/original"], arrays[f"{at}/reconstruction"], fitted)


def _membership(arrays: Arrays, at: str) -> MembershipInference:
    method, unit, assumption = (str(name) for name in arrays[f"{at}/names"])
    return judge(
        arrays[f"{at}/scores"],
        arrays[f"{at}/is_member"],
        method=method,
        unit="client" if unit == "client" else "example",
        assumption=assumption,
        owners=arrays[f"{at}/owners"],
        alike=bool(arrays[f"{at}/alike"]),
    )


def _seen(arrays: Arrays) -> Seen | None:
    if "canaries/included" not in arrays:
        return None
    dimension, rounds = (int(value) for value in arrays["canaries/size"])
    vantages = {observer: _vantage(arrays, f"canaries/{observer.value}") for observer in Observer}
    return Seen(vantages, arrays["canaries/included"], dimension, rounds)


def _vantage(arrays: Arrays, at: str) -> Vantage:
    rounds = None
    if f"{at}/rounds" in arrays:
        with_count, with_sum, with_squares, count, total, squares = map(float, arrays[f"{at}/rounds"])
        rounds = RoundScores(int(with_count), with_sum, with_squares, int(count), total, squares)
    fitted = (str(arrays[f"{at}/fit"]), arrays[f"{at}/fitted"]) if f"{at}/fitted" in arrays else None
    return Vantage(str(arrays[f"{at}/sees"]), arrays[f"{at}/scores"], rounds, fitted, bool(arrays[f"{at}/told"]))
