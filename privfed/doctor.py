"""Whether this installation is sound: versions and hardware, and parts that must give known answers."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from privfed import __version__

PACKAGES = (
    "tensorflow",
    "tensorflow-federated",
    "tensorflow-privacy",
    "tensorflow-datasets",
    "dp-accounting",
    "cryptography",
    "numpy",
    "scipy",
)

EPSILON = 1.8282
"""Of 1,000 rounds at rate .01 and noise multiplier 1, δ = 1e-5: a reference value of FL under Poisson sampling."""

STREAM = "cea7403d4d606b6e074ec5d3baf39d18"
"""First block under the key of zeros: the ciphertext of zeros in test case 14 of McGrew & Viega's GCM, 2004."""

SAMPLES = 20_000


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes:
        what: Was looked at.
        found: In words.
        sound: Whether it is as it must be; ``None`` where there is nothing to be wrong.
    """

    what: str
    found: str
    sound: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine() -> Iterator[Finding]:
    """Everything, one finding after another: the quick first."""
    yield Finding("privfed", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, "is not installed: run `make setup`", False)
    yield Finding("BLAS", _blas())
    yield Finding("cores", f"{len(os.sched_getaffinity(0)) if sys.platform == 'linux' else os.cpu_count()}")
    for what, check in _CHECKS:
        try:
            sound, found = check()
        except Exception as error:  # noqa: BLE001 - whatever is broken, the others are looked at
            sound, found = False, f"{type(error).__name__}: {error}"
        yield Finding(what, found, bool(sound))


def _blas() -> str:
    from threadpoolctl import threadpool_info  # which scikit-learn brings

    libraries = threadpool_info()
    return ", ".join(f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads" for lib in libraries)


def _randomness() -> tuple[bool, str]:
    """Bits of the system's generator: half of them set, within 5 standard deviations, and no two draws alike."""
    first, second = (np.frombuffer(os.urandom(SAMPLES), np.uint8) for _ in range(2))
    share = float(np.unpackbits(first).mean())
    sound = abs(share - 0.5) < 5 * 0.5 / np.sqrt(8 * SAMPLES) and not np.array_equal(first, second)
    return sound, f"{share:.2%} of {8 * SAMPLES:,} bits set"


def _keystream() -> tuple[bool, str]:
    from privfed.secagg.prg import keystream

    stream = keystream(bytes(32)).update(bytes(16)).hex()
    return stream == STREAM, f"AES-256 under the key of zeros begins {stream[:8]}…"


def _masking() -> tuple[bool, str]:
    """The protocol among five clients, of which one vanishes: the sum of the others, and masked uploads."""
    from privfed.secagg import ProtocolSum, Stage

    inputs = {client: np.full(4, client, np.uint32) for client in range(1, 6)}
    result = ProtocolSum(over_wire=True).sum(inputs, {5: Stage.SHARE_KEYS})
    hidden = all(not np.array_equal(result.uploads[c], inputs[c]) for c in result.survivors)
    sound = result.total.tolist() == [10] * 4 and hidden
    return sound, f"1 + 2 + 3 + 4 = {int(result.total[0])} under masks, without the client that vanished"


def _accounting() -> tuple[bool, str]:
    from privfed.privacy.accounting import account
    from privfed.privacy.sampling import PoissonSampling

    guarantee = account(1.0, PoissonSampling(0.01), 1000, 1e-5)
    sound = EPSILON <= guarantee.epsilon <= 1.01 * EPSILON
    return sound, f"{guarantee.statement()} The reference is {EPSILON}."


def _noise() -> tuple[bool, str]:
    from privfed.privacy.noise import discrete_gaussian
    from privfed.privacy.randomness import SystemSource

    stddev = float(discrete_gaussian(1000, SAMPLES, SystemSource()).std())
    sound = abs(stddev / 1000 - 1) < 5 / np.sqrt(2 * SAMPLES)
    return sound, f"standard deviation {stddev:.1f} of secure noise that should have 1000"


def _tensorflow() -> tuple[bool, str]:
    import tensorflow as tf

    devices = ", ".join(sorted({device.device_type for device in tf.config.list_physical_devices()}))
    product = tf.matmul(tf.ones([3, 2]), tf.ones([2, 4])).numpy()
    return bool((product == 2).all()), f"multiplies matrices; devices: {devices}"


_CHECKS: tuple[tuple[str, Callable[[], tuple[bool, str]]], ...] = (
    ("randomness", _randomness),
    ("keystream", _keystream),
    ("masking", _masking),
    ("secure noise", _noise),
    ("accounting", _accounting),
    ("tensorflow runs", _tensorflow),
)
