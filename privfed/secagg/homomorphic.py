"""Sums of ring vectors under homomorphic encryption: exact integers in BFV, added by a server that has no key.

A key holder, who is neither the server nor a client, makes a key pair for each sum. Clients encrypt under the
public key, the server adds ciphertexts, and the key holder decrypts their sum for it (the setting of Phong et al.
2018 and of BatchCrypt, Zhang et al. 2020, with one holder of the key in the place of all clients).

BFV (Fan and Vercauteren 2012) computes with integers modulo a prime t. Ring elements of b bits are encrypted as
the integers from 0 to 2^b - 1, and t is larger than any sum of the cohort's: the sum is that of the integers, and
modulo 2^b it is the ring's, to the last bit, wherever the ring wraps around. CKKS would add an error, and its
decryptions give the key away to whom they are shown (Li and Micciancio 2021). Exact schemes have that weakness
where decryption can fail (Cheon et al. 2024); here it cannot: ``BfvParams`` bounds the noise at its worst.

What holds against whom: ``docs/homomorphic.md``. Keys and noise are SEAL's, whose generator (BLAKE2Xb) is seeded
by the operating system or the processor; nothing takes a seed.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from privfed.secagg import ring
from privfed.secagg.errors import InputError, ParameterError
from privfed.secagg.simulation import Dropouts, Inputs, SumResult, admit, arrivals

EXTRA = "homomorphic"
"""Of the package, that brings TenSEAL."""
SHAPES = ((4096, (54, 55)), (4096, (36, 36, 37)), (8192, (54, 54, 55)))
"""Degrees and bits of the coefficient modulus, cheapest first. All are of 128 bits of security (Albrecht et al.
2018, table 1: at most 109 bits at degree 4096 and 218 at 8192); the last prime is SEAL's for key switching."""
LARGEST_ERROR = 21
"""Of a coefficient of the noise that SEAL draws: a centred binomial of 42 bits."""
LEAST_PLAIN_BITS = 20
"""Of t, of which SEAL needs it to be 1 modulo twice the degree."""
MOST_PLAIN_BITS = 59
"""Of t, which is one bit longer than the largest sum; SEAL takes 60."""

Ciphertexts = tuple[bytes, ...]
"""One vector, encrypted: a serialized ciphertext for every ``degree`` coordinates."""


@dataclass(frozen=True)
class BfvParams:
    """Public parameters of one sum.

    Attributes:
        clients: Most vectors in the sum.
        ring_bits: Elements are below ``2**ring_bits``.
        degree: Of the polynomials, and coordinates in one ciphertext.
        coefficient_bits: Of the primes whose product is the ciphertexts' modulus, SEAL's special one last.
        plain_bits: Of the prime t.
    """

    clients: int
    ring_bits: int
    degree: int
    coefficient_bits: tuple[int, ...]
    plain_bits: int

    @classmethod
    def for_sum(cls, clients: int, ring_bits: int) -> BfvParams:
        """The cheapest with which no sum of ``clients`` vectors of ``ring_bits`` can come out wrong.

        Raises:
            ParameterError: Sums are too long for SEAL's plaintext modulus.
        """
        ring.check_bits(ring_bits)
        plain_bits = max(LEAST_PLAIN_BITS, (clients * (2**ring_bits - 1)).bit_length() + 1)
        if plain_bits <= MOST_PLAIN_BITS:
            for degree, coefficient_bits in SHAPES:
                # SEAL takes the largest primes of given lengths: t of another length is coprime to all of them.
                length = next(b for b in range(plain_bits, 64) if b not in coefficient_bits)
                params = cls(clients, ring_bits, degree, coefficient_bits, length)
                if params.largest_noise < params.noise_limit:
                    return params
        raise ParameterError(
            f"ring_bits: sums of {clients} vectors of {ring_bits} bits do not fit an encrypted integer of "
            f"{MOST_PLAIN_BITS} bits. Take fewer bits or clients"
        )

    @property
    def largest_noise(self) -> int:
        """Of a sum's coefficients: per ciphertext e·u + e₁ + e₂·s, with u and s of -1, 0 and 1, and roundings."""
        fresh = LARGEST_ERROR * (2 * self.degree + 1)
        return self.clients * (fresh + self.degree + 2)

    @property
    def noise_limit(self) -> int:
        """Below which decryption is right: q / 2t, with the least q and the greatest t of these lengths."""
        least = sum(bits - 1 for bits in self.coefficient_bits[:-1])
        return int(2 ** (least - 1 - self.plain_bits))


class KeyHolder:
    """Has the secret key; makes it anew, and never shows, copies or writes it."""

    def __init__(self, params: BfvParams) -> None:
        library = tenseal()
        modulus = (
            importlib.import_module("tenseal.sealapi")
            .PlainModulus.Batching(params.degree, params.plain_bits)
            .value()
        )
        self.params = params
        self._modulus = int(modulus)
        self._context = library.context(
            library.SCHEME_TYPE.BFV,
            poly_modulus_degree=params.degree,
            plain_modulus=modulus,
            coeff_mod_bit_sizes=list(params.coefficient_bits),
            n_threads=1,
        )
        self.public_key: bytes = self._context.serialize(
            save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False
        )

    def decrypt(self, total: Sequence[bytes], dimension: int) -> NDArray[Any]:
        """The sum modulo the ring, ``[dimension]``.

        Whoever asks gets what the ciphertexts hold: nothing tells a sum from a single client's vector.
        """
        load = tenseal().bfv_vector_from
        parts = [np.array(load(self._context, part).decrypt(), np.int64) for part in total]
        values = np.concatenate(parts) if parts else np.zeros(0, np.int64)
        if values.shape != (dimension,):
            raise InputError(f"sum: must have {dimension} coordinates (got {len(values)})")
        whole = (values % self._modulus).astype(np.uint64)  # SEAL centres on 0
        mask = np.uint64(2**self.params.ring_bits - 1)
        return (whole & mask).astype(ring.dtype_of(self.params.ring_bits))

    def __repr__(self) -> str:
        return f"KeyHolder({self.params}, secret key hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key holder is not copied or written: its secret key stays where it was made")


class Encryptor:
    """A client's half, and all that it needs: public parameters and the public key."""

    def __init__(self, params: BfvParams, public_key: bytes) -> None:
        self.params = params
        self._context = tenseal().context_from(public_key, n_threads=1)

    def encrypt(self, vector: NDArray[Any]) -> Ciphertexts:
        """``vector`` of ring elements ``[dimension]``, under fresh randomness each time.

        Raises:
            InputError: It is no vector of the ring's type, or an element is out of range.
        """
        bits = self.params.ring_bits
        if vector.dtype != ring.dtype_of(bits) or vector.ndim != 1:
            raise InputError(f"vector: must be of {ring.dtype_of(bits)} (got {vector.dtype} {vector.shape})")
        if len(vector) and int(vector.max()) >> bits:
            raise InputError(f"vector: elements must be below 2**{bits} (got {int(vector.max())})")
        make = tenseal().bfv_vector
        return tuple(make(self._context, part.tolist()).serialize() for part in self._parts(vector))

    def _parts(self, vector: NDArray[Any]) -> Iterator[NDArray[Any]]:
        for start in range(0, len(vector), self.params.degree):
            yield vector[start : start + self.params.degree]


class CiphertextSum:
    """The server's half: adds what it cannot read."""

    def __init__(self, params: BfvParams, public_key: bytes) -> None:
        self.params = params
        self._context = tenseal().context_from(public_key, n_threads=1)
        self._added = 0
        self._parts: list[Any] = []

    def add(self, upload: Ciphertexts) -> None:
        """Add one client's vector.

        Raises:
            ParameterError: There are more than the parameters leave room for.
            InputError: It is of another length than the ones before.
        """
        if self._added == self.params.clients:
            raise ParameterError(f"clients: the keys are for {self._added} vectors. Make keys for more")
        load = tenseal().bfv_vector_from
        loaded = [load(self._context, part) for part in upload]
        if not self._added:
            self._parts = loaded
        elif [part.size() for part in loaded] != [part.size() for part in self._parts]:
            raise InputError(f"upload: must have the {len(self._parts)} ciphertexts of the others' lengths")
        else:
            for mine, theirs in zip(self._parts, loaded, strict=True):
                mine.add_(theirs)
        self._added += 1

    @property
    def total(self) -> Ciphertexts:
        """The encrypted sum."""
        return tuple(part.serialize() for part in self._parts)


@dataclass(frozen=True)
class HomomorphicSum:
    """A sum under BFV among clients, server and key holder of this process; keys are new for every sum.

    Its totals, survivors and aborts are those of ``RingSum``. By itself the scheme needs no client any more once
    the ciphertexts have come: the threshold is a rule for privacy's sake, which the server is trusted to keep.

    Attributes:
        threshold: As in ``RingSum``.
        ring_bits: As in ``RingSum``.
    """

    threshold: int | None = None
    ring_bits: int | None = None

    def sum(self, inputs: Inputs, dropouts: Dropouts) -> SumResult:
        """As ``SecureSum.sum``: the server holds ciphertexts and gets the sum; ``uploads`` is empty.

        Raises:
            ParameterError: Also when the sum is too long for SEAL (``BfvParams.for_sum``), or TenSEAL is missing.
        """
        started = time.perf_counter()
        client_ids, threshold, bits = admit(inputs, dropouts, self.ring_bits, self.threshold)
        survivors = arrivals(client_ids, dropouts, threshold)
        params = BfvParams.for_sum(len(client_ids), bits)
        holder = KeyHolder(params)
        server = CiphertextSum(params, holder.public_key)
        seconds = {"keys": time.perf_counter() - started}
        started, sent = time.perf_counter(), 0
        for client_id in survivors:
            element = inputs[client_id].copy()
            ring.reduce(element, bits)
            upload = Encryptor(params, holder.public_key).encrypt(element)
            sent += sum(map(len, upload))
            server.add(upload)
        seconds["ciphertexts"], started = time.perf_counter() - started, time.perf_counter()
        total = holder.decrypt(server.total, len(inputs[client_ids[0]]))
        seconds["decryption"] = time.perf_counter() - started
        return SumResult(total, survivors, {}, {"keys": 0, "ciphertexts": sent, "decryption": 0}, seconds)


def tenseal() -> Any:
    """TenSEAL, which is not loaded before it is needed.

    Raises:
        ParameterError: It is not installed.
    """
    try:
        return importlib.import_module("tenseal")
    except ImportError:
        raise ParameterError(
            f"homomorphic encryption needs TenSEAL, which is not installed. Run: pip install 'privfed[{EXTRA}]'"
        ) from None
