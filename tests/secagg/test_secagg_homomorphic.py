"""Sums under BFV: the ring's to the last bit, right at the noise's worst, and unreadable without the key."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from privfed.secagg import HomomorphicSum, ProtocolSum, RingSum, RoundAborted, Stage, ring
from privfed.secagg.errors import InputError, ParameterError
from privfed.secagg.homomorphic import BfvParams, CiphertextSum, Encryptor, KeyHolder

tenseal = pytest.importorskip("tenseal")


def vectors(clients: int, bits: int, dimension: int = 5, seed: int = 0) -> dict[int, np.ndarray]:
    """The largest elements among others, so that sums wrap around."""
    rng = np.random.default_rng(seed)
    dtype = ring.dtype_of(bits)
    found = {i: rng.integers(0, 2**bits, dimension, dtype=dtype) for i in range(3, 3 + clients)}
    for vector in found.values():
        vector[0] = 2**bits - 1
    return found


def outcome(kind: Any, inputs: Any, dropouts: Any) -> tuple[Any, ...]:
    try:
        result = kind.sum(inputs, dropouts)
    except RoundAborted as aborted:
        return aborted.stage, aborted.survivors, aborted.threshold
    return result.survivors, result.total.dtype, result.total.tolist()


@pytest.mark.parametrize("bits", [8, 13, 21, 26, 32, 40])
def test_sums_are_the_rings_to_the_last_bit_where_it_wraps_around(bits: int) -> None:
    inputs = vectors(7, bits)
    encrypted, plain = (kind(None, bits).sum(inputs, {4: None}) for kind in (HomomorphicSum, RingSum))
    assert encrypted.survivors == plain.survivors
    assert encrypted.total.dtype == plain.total.dtype
    np.testing.assert_array_equal(encrypted.total, plain.total)
    whole = [sum(int(v[k]) for i, v in inputs.items() if i != 4) for k in range(5)]
    assert whole[0] >= 2**bits  # it does wrap around
    assert plain.total.tolist() == [w % 2**bits for w in whole]


def test_vectors_longer_than_a_ciphertext_are_cut_and_put_together() -> None:
    inputs = vectors(3, 21, dimension=2 * 4096 + 17)
    encrypted = HomomorphicSum(None, 21).sum(inputs, {})
    np.testing.assert_array_equal(encrypted.total, RingSum(None, 21).sum(inputs, {}).total)


@pytest.mark.parametrize("last", [None, *Stage])
def test_survivors_and_aborts_are_those_of_the_protocol(last: Stage | None) -> None:
    inputs = vectors(5, 32)
    for gone in (1, 2, 3):
        dropouts = dict.fromkeys(list(inputs)[:gone], last)
        expected = outcome(ProtocolSum(1, 3, ring_bits=32), inputs, dropouts)
        assert outcome(HomomorphicSum(3, 32), inputs, dropouts) == expected


@pytest.mark.parametrize(("clients", "bits"), [(2, 8), (20, 21), (20, 32), (1000, 32), (2**18, 40)])
def test_the_plaintext_holds_any_sum_and_the_noise_its_bound(clients: int, bits: int) -> None:
    params = BfvParams.for_sum(clients, bits)
    holder = KeyHolder(params)
    assert holder._modulus > clients * (2**bits - 1)
    assert holder._modulus % (2 * params.degree) == 1  # what batching needs
    # The budget that SEAL measures, bits from q / 2t down to the noise, is at least what the bound leaves.
    worst = np.full(4, 2**bits - 1, ring.dtype_of(bits))
    server = CiphertextSum(params, holder.public_key)
    added = min(clients, 20)
    for _ in range(added):
        server.add(Encryptor(params, holder.public_key).encrypt(worst))
    seal = __import__("tenseal.sealapi").sealapi
    meter = seal.Decryptor(holder._context.seal_context().data, holder._context.secret_key().data)
    left = meter.invariant_noise_budget(server._parts[0].ciphertext()[0])
    assert left >= (params.noise_limit // params.largest_noise).bit_length() - 1 >= 0
    assert holder.decrypt(server.total, 4).tolist() == [added * (2**bits - 1) % 2**bits] * 4


def test_sums_that_do_not_fit_are_refused_and_not_made_wrong() -> None:
    with pytest.raises(ParameterError, match=r"ring_bits: sums of 20 vectors of 64 bits do not fit"):
        BfvParams.for_sum(20, 64)
    with pytest.raises(ParameterError, match="do not fit"):
        BfvParams.for_sum(2**20, 40)
    params = BfvParams.for_sum(2, 8)
    key = KeyHolder(params).public_key
    server, one = CiphertextSum(params, key), np.ones(3, ring.dtype_of(8))
    for _ in range(2):
        server.add(Encryptor(params, key).encrypt(one))
    with pytest.raises(ParameterError, match="the keys are for 2 vectors"):
        server.add(Encryptor(params, key).encrypt(one))


def test_vectors_of_another_kind_are_refused() -> None:
    params = BfvParams.for_sum(3, 21)
    holder = KeyHolder(params)
    client, server = Encryptor(params, holder.public_key), CiphertextSum(params, holder.public_key)
    with pytest.raises(InputError, match="must be of uint32"):
        client.encrypt(np.zeros(3))
    with pytest.raises(InputError, match=r"must be below 2\*\*21 \(got 2097152\)"):
        client.encrypt(np.array([2**21], np.uint32))
    server.add(client.encrypt(np.zeros(3, np.uint32)))
    with pytest.raises(InputError, match="the others' lengths"):
        server.add(client.encrypt(np.zeros(4, np.uint32)))
    with pytest.raises(InputError, match="must have 5 coordinates"):
        holder.decrypt(server.total, 5)


def test_only_the_key_holder_decrypts_and_its_key_stays() -> None:
    params = BfvParams.for_sum(3, 21)
    holder = KeyHolder(params)
    upload = Encryptor(params, holder.public_key).encrypt(np.arange(4, dtype=np.uint32))
    public = tenseal.context_from(holder.public_key)
    assert not public.is_private()
    with pytest.raises(ValueError, match="secret_key"):
        tenseal.bfv_vector_from(public, upload[0]).decrypt()
    # Another key reads nothing: the chance that 4 of its coordinates are right is below 2^-80.
    assert KeyHolder(params).decrypt(upload, 4).tolist() != [0, 1, 2, 3]
    assert holder.decrypt(upload, 4).tolist() == [0, 1, 2, 3]
    secret = holder._context.serialize(save_public_key=False, save_secret_key=True)
    assert len(secret) > 1000
    assert secret[-200:] not in holder.public_key
    assert "hidden" in repr(holder)
    assert "0x" not in repr(holder)
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret key stays"):
            way(holder)


def test_encrypting_twice_gives_other_ciphertexts_and_keys_are_new_every_time() -> None:
    params = BfvParams.for_sum(3, 21)
    holder = KeyHolder(params)
    client, vector = Encryptor(params, holder.public_key), np.zeros(3, np.uint32)
    assert client.encrypt(vector) != client.encrypt(vector)
    assert holder.public_key != KeyHolder(params).public_key


def test_what_is_counted_is_what_was_sent() -> None:
    inputs = vectors(4, 21, dimension=4096)
    result = HomomorphicSum(None, 21).sum(inputs, {3: None})
    params = BfvParams.for_sum(4, 21)
    one = len(Encryptor(params, KeyHolder(params).public_key).encrypt(inputs[4])[0])
    assert dict(result.bytes_per_stage) == {
        "keys": 0,
        "ciphertexts": pytest.approx(3 * one, rel=0.01),
        "decryption": 0,
    }
    # Two polynomials of 4096 coefficients of 54 bits, compressed: no less than their entropy.
    assert result.bytes_per_stage["ciphertexts"] > 3 * 2 * 4096 * 53 / 8
    assert set(result.seconds_per_stage) == set(result.bytes_per_stage)
    assert not result.uploads


def test_the_library_is_loaded_when_it_is_needed_and_missed_in_one_line() -> None:
    program = """
import sys
import numpy as np
from privfed.secagg import HomomorphicSum
from privfed.secagg.errors import ParameterError
assert "tenseal" not in sys.modules
sys.modules["tenseal"] = None  # as if it were not installed
try:
    HomomorphicSum().sum({1: np.zeros(3, np.uint32), 2: np.zeros(3, np.uint32)}, {})
except ParameterError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "homomorphic encryption needs TenSEAL, which is not installed. Run: pip install 'privfed[homomorphic]'\n"
    )
