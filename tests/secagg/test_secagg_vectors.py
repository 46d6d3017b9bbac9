"""Known answers for the primitives, through the package's own wrappers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privfed.secagg import Directory, Identity, SecAggParams
from privfed.secagg.errors import KeyRefusedError
from privfed.secagg.keys import KeyPair, Purpose, Scope, hkdf_sha256, tag_of
from privfed.secagg.prg import BLOCK_BYTES, FIRST_BLOCK, _counter_mode, apply_masks, keystream


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def test_x25519_agrees_with_rfc_7748_section_6_1() -> None:
    alice = KeyPair.from_private_bytes(unhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"))
    bob = KeyPair.from_private_bytes(unhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"))
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.exchange(bob.public, owner=1).hex() == shared
    assert bob.exchange(alice.public, owner=0).hex() == shared


@pytest.mark.parametrize(
    ("scalar", "u", "result"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_x25519_agrees_with_rfc_7748_section_5_2(scalar: str, u: str, result: str) -> None:
    assert KeyPair.from_private_bytes(unhex(scalar)).exchange(unhex(u), owner=0).hex() == result


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31), bytes(31)])
def test_unusable_public_keys_are_refused_by_owner(public: bytes) -> None:
    with pytest.raises(KeyRefusedError, match="client 17") as caught:
        KeyPair.generate().exchange(public, owner=17)
    assert caught.value.offender == 17


RFC_5869 = {
    "A.1": (
        b"\x0b" * 22,
        bytes(range(0x0D)),
        bytes(range(0xF0, 0xFA)),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    "A.2": (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    "A.3": (
        b"\x0b" * 22,
        None,
        b"",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
}


@pytest.mark.parametrize("case", RFC_5869)
def test_hkdf_agrees_with_rfc_5869_appendix_a(case: str) -> None:
    secret, salt, info, expected = RFC_5869[case]
    assert hkdf_sha256(secret, info, salt=salt, length=len(expected) // 2).hex() == expected
    # The 32 bytes that the protocol takes are the first 32 of any longer output.
    assert hkdf_sha256(secret, info, salt=salt).hex() == expected[:64]


KEY_F55 = unhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
COUNTER_F55 = unhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN_F55 = unhex(
    "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710"
)
CIPHER_F55 = unhex(
    "601ec313775789a5b7a7f504bbf3d228 f443e3ca4d62b59aca84e990cacaf5c5"
    "2b0930daa23de94ce87017ba2d84988d dfc9c58db67aada613c2dd08457941a6"
)


def test_keystream_agrees_with_sp_800_38a_section_f_5_5() -> None:
    assert _counter_mode(KEY_F55, int.from_bytes(COUNTER_F55, "big")).update(PLAIN_F55) == CIPHER_F55


def test_keystream_at_counter_zero_is_the_block_cipher_of_zero() -> None:
    # NIST AESAVS, appendix C.1, KeySbox known answer for 256-bit keys, first row: plaintext zero.
    key = unhex("c47b0294dbbbee0fec4757f22ffeee3587ca4730c3d33b691df38bab076bc558")
    assert _counter_mode(key, 0).update(bytes(16)).hex() == "46f2fb342d6f0ab477476fc501242c5f"


@pytest.mark.parametrize("by_gcm", [True, False])
def test_the_stream_is_the_same_whichever_mode_makes_it(by_gcm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privfed.secagg.prg._gcm_is_faster", lambda: by_gcm)
    # McGrew and Viega, "The Galois/Counter Mode of Operation", test case 14: key, nonce and plaintext zero.
    assert keystream(bytes(32)).update(bytes(16)).hex() == "cea7403d4d606b6e074ec5d3baf39d18"
    assert keystream(KEY_F55).update(bytes(100_000)) == _counter_mode(KEY_F55, FIRST_BLOCK).update(bytes(100_000))


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_masks_equal_the_stream_taken_in_one_piece(dtype: type, extra: int) -> None:
    length = 2 * BLOCK_BYTES // np.dtype(dtype).itemsize + extra
    keys = [bytes([i]) * 32 for i in range(3)]
    streams = [
        np.frombuffer(
            keystream(k).update(bytes(length * np.dtype(dtype).itemsize)), np.dtype(dtype).newbyteorder("<")
        )
        for k in keys
    ]
    vector = np.arange(length, dtype=dtype)
    apply_masks(vector, keys[:2], keys[2:])
    assert (vector == np.arange(length, dtype=dtype) + streams[0] + streams[1] - streams[2]).all()


def test_bindings_differ_in_every_part() -> None:
    def scope(top: bytes = bytes(32), **changes: Any) -> Scope:
        given = {
            "session": b"s" * 16,
            "round_number": 1,
            "client_ids": tuple(range(9)),
            "threshold": 6,
            "dimension": 4,
        }
        return Scope(SecAggParams(**{**given, **changes}), top)

    variants = [
        scope().info(Purpose.CHANNEL, 1, 2),
        scope().info(Purpose.CHANNEL, 2, 1),
        scope().info(Purpose.PAIR_MASK, 1, 2),
        scope(session=b"s" * 17).info(Purpose.CHANNEL, 1, 2),
        scope(session=b"t" * 16).info(Purpose.CHANNEL, 1, 2),
        scope(round_number=2).info(Purpose.CHANNEL, 1, 2),
        scope(top=b"r" * 32).info(Purpose.CHANNEL, 1, 2),
        scope(threshold=7).info(Purpose.CHANNEL, 1, 2),
        scope(dimension=5).info(Purpose.CHANNEL, 1, 2),
        scope(ring_bits=64).info(Purpose.CHANNEL, 1, 2),
        scope(degree=6).info(Purpose.CHANNEL, 1, 2),
        scope(client_ids=tuple(range(1, 10))).info(Purpose.CHANNEL, 1, 2),
    ]
    assert len(set(variants)) == len(variants)


@pytest.mark.parametrize(
    ("private", "public", "message", "signature"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "",
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00",
        ),
    ],
)
def test_ed25519_agrees_with_rfc_8032_section_7_1(private: str, public: str, message: str, signature: str) -> None:
    identity = Identity.from_private_bytes(unhex(private))
    assert identity.public.hex() == public
    assert identity.sign(unhex(message)).hex() == signature
    directory = Directory({5: unhex(public)})
    assert directory.verify(5, unhex(signature), unhex(message))
    assert not directory.verify(5, unhex(signature), unhex(message) + b"0")
    assert private not in repr(identity)


def naive_gmac(key: bytes, nonce: bytes, data: bytes) -> bytes:
    """SP 800-38D, sections 6.3, 6.4 and 7.1, bit by bit, for data that are authenticated and not encrypted."""

    def encrypted(block: bytes) -> int:
        return int.from_bytes(Cipher(algorithms.AES256(key), modes.ECB()).encryptor().update(block), "big")

    def times(x: int, y: int) -> int:
        product = 0
        for bit in range(127, -1, -1):
            if (x >> bit) & 1:
                product ^= y
            y = (y >> 1) ^ (0xE1 << 120 if y & 1 else 0)
        return product

    subkey, hashed = encrypted(bytes(16)), 0
    padded = data + bytes(-len(data) % 16) + (8 * len(data)).to_bytes(8, "big") + bytes(8)
    for start in range(0, len(padded), 16):
        hashed = times(hashed ^ int.from_bytes(padded[start : start + 16], "big"), subkey)
    return (hashed ^ encrypted(nonce + b"\0\0\0\1")).to_bytes(16, "big")


def test_the_naive_gmac_agrees_with_nists_example() -> None:
    # NIST's CAVP, gcmEncryptExtIV256.rsp: PTlen 0, AADlen 128, tag of 128 bits, count 0.
    key = unhex("78dc4e0aaf52d935c3c01eea57428f00ca1fd475f5da86a49c8dd73d68c8e223")
    nonce, data = unhex("d79cf22d504cc793c3fb6c8a"), unhex("b96baa8c1c75a671bfb2d08d06be5f36")
    assert naive_gmac(key, nonce, data) == unhex("3e5d486aa2e30b22e040b85723a06e76")


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 500])
def test_tags_are_gmac_however_the_message_is_cut(size: int) -> None:
    rng = np.random.default_rng(size)
    key, data = rng.bytes(32), rng.bytes(size)
    tag = naive_gmac(key, bytes(11) + b"\5", data)
    for at in {0, size // 2, max(size - 1, 0)}:
        assert tag_of(key, 5, [data[:at], memoryview(data)[at:]]) == tag
    assert tag_of(key, 5, [data, b"0"]) != tag
    assert tag_of(key, 3, [data]) != tag


def test_the_answer_does_not_depend_on_the_number_of_threads() -> None:
    for dtype, length in ((np.uint32, 4_000_003), (np.uint64, 1_000_001)):
        keys = [bytes([i]) * 32 for i in range(5)]
        alone = np.arange(length, dtype=dtype)
        apply_masks(alone, keys[:2], keys[2:])
        for workers in (2, 3):
            together = np.arange(length, dtype=dtype)
            apply_masks(together, keys[:2], keys[2:], workers)
            assert (together == alone).all()
