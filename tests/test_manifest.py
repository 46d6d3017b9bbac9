"""Files tied together by their hashes, and a signature on these: every changed byte is found, by line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from test_verification import evidence_of, failed, write_run

from privfed.errors import PrivFedError
from privfed.manifest import load_private_key, load_public_key, manifest_text, read_manifest, seal
from privfed.publication import publish, render_folder, withdraw
from privfed.verification import verify_run

COVERED = (
    "config.toml",
    "ledger.jsonl",
    "manifest.json",
    "manifest.sig",
    "metrics.jsonl",
    "registry.json",
    "report.html",
    "report.json",
    "report.md",
    "transcript.npz",
    "weights.npy",
)


def key_files(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A fresh key pair in PEM, private and public."""
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return key_files(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Path:
    folder = write_run(tmp_path_factory.mktemp("signed") / "run")
    publish(evidence_of(folder), folder, load_private_key(keys[0]))
    return folder


def holds(folder: Path, key: Path | None = None) -> bool:
    """Whether verification says so; an error is no "yes" either."""
    try:
        return verify_run(folder, key).holds
    except PrivFedError:
        return False


def test_a_signed_report_holds_and_says_by_whom(signed: Path, keys: tuple[Path, Path]) -> None:
    assert sorted(p.name for p in signed.iterdir()) == sorted(COVERED)
    assert failed(verify_run(signed, keys[1])) == []
    assert "signed by the key that was given" in verify_run(signed, keys[1]).as_text()
    assert "give --key to say whose it must be" in verify_run(signed).as_text()


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_any_changed_byte_of_any_file_is_found(
    data: st.DataObject, signed: Path, keys: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The property of the whole: one byte of one file, anywhere, to any other value."""
    name = data.draw(st.sampled_from(COVERED))
    content = bytearray((signed / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    folder = shutil.copytree(signed, tmp_path_factory.mktemp("edited") / "run")
    (folder / name).write_bytes(content)
    assert not holds(folder)
    assert not holds(folder, keys[1])


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_without_a_signature_one_byte_is_found_as_well(
    data: st.DataObject, signed: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = shutil.copytree(signed, tmp_path_factory.mktemp("edited") / "run")
    (folder / "manifest.sig").unlink()
    assert holds(folder)
    name = data.draw(st.sampled_from([n for n in COVERED if n != "manifest.sig"]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (folder / name).write_bytes(content)
    assert not holds(folder)


@pytest.mark.parametrize("name", COVERED)
def test_a_byte_more_or_less_or_a_whole_file_less(
    name: str, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    for change in (lambda c: c + b"\n", lambda c: c[:-1], lambda c: b""):
        folder = shutil.copytree(signed, tmp_path / "run", dirs_exist_ok=True)
        (folder / name).write_bytes(change((signed / name).read_bytes()))
        assert not holds(folder, keys[1])
        (folder / name).write_bytes((signed / name).read_bytes())
    assert holds(folder, keys[1])
    (folder / name).unlink()
    # A report that is gone altogether claims nothing any more.
    assert holds(folder, keys[1]) == (name == "report.json")


def test_who_rewrites_everything_is_found_by_the_signature_alone(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """A forger with write access: another accuracy in report and metrics, pages and hashes made anew."""
    folder = shutil.copytree(signed, tmp_path / "run")
    evidence = evidence_of(folder)
    metrics, (*points, last) = folder / "metrics.jsonl", evidence.accuracy.protected
    metrics.write_text(
        metrics.read_text().replace(f'"test_accuracy": {last.test_accuracy}', '"test_accuracy": 0.999')
    )
    points.append(last.model_copy(update={"test_accuracy": 0.999}))
    accuracy = {"final_protected": 0.999, "protected": tuple(points)}
    better = evidence.model_copy(update={"accuracy": evidence.accuracy.model_copy(update=accuracy)})
    publish(better, folder)
    assert holds(folder)  # as the line "not signed" warns
    assert "not signed" in verify_run(folder).as_text()
    assert not holds(folder, keys[1])
    other = key_files(tmp_path, "other")
    publish(better, folder, load_private_key(other[0]))
    assert holds(folder)
    assert "is by another key" in verify_run(folder, keys[1]).as_text()
    shutil.copy(signed / "manifest.sig", folder)
    assert "does not fit manifest.json" in verify_run(folder).as_text()


def test_rendering_again_keeps_the_seal_and_hides_no_edit(signed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(signed, tmp_path / "run")
    render_folder(folder)
    assert holds(folder)
    (folder / "report.html").write_text("edited")
    render_folder(folder)
    assert holds(folder)
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + "\n")
    render_folder(folder)
    assert "metrics.jsonl is not the file whose hash" in " ".join(failed(verify_run(folder)))


def test_pages_that_come_out_otherwise_need_the_key_again(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(signed, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    monkeypatch.setattr("privfed.report.storage.render_markdown", lambda evidence: "a newer program's\n")
    with pytest.raises(PrivFedError, match=r"otherwise than they were signed.*--sign KEY"):
        render_folder(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    render_folder(folder, load_private_key(keys[0]))
    assert holds(folder, keys[1])


def test_what_is_not_in_the_manifest_is_named(signed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(signed, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    assert holds(folder)
    assert "not in manifest.json, and not checked: notes.txt" in verify_run(folder).as_text()


def test_a_report_without_a_manifest_does_not_hold(signed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(signed, tmp_path / "run")
    (folder / "manifest.json").unlink()
    (folder / "manifest.sig").unlink()
    assert failed(verify_run(folder)) == [
        "manifest.json is missing: nothing ties the measured figures to the run; audit again"
    ]
    withdraw(folder)
    assert holds(folder)  # a run without a report


def test_a_training_is_sealed_without_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    assert not seal(folder)
    assert holds(folder)
    assert not seal(folder, ("weights.npy",))
    assert "weights.npy" not in read_manifest(folder).files
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"round": 1', '"round":  1'))
    assert "metrics.jsonl is not the file" in " ".join(failed(verify_run(folder)))


def test_hidden_files_checkpoints_and_the_printed_page_are_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    text = manifest_text(folder)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "1.npz").write_bytes(b"x")
    for name in (".hidden", "report.pdf", "events.out.tfevents.1"):
        (folder / name).write_bytes(b"x")
    assert manifest_text(folder) == text


def test_keys_that_are_none(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other = tmp_path / "other.pem"
    other.write_text("no key")
    for load, option in ((load_private_key, "--sign"), (load_public_key, "--key")):
        with pytest.raises(PrivFedError, match=f"{option}.*is no Ed25519.*openssl genpkey"):
            load(other)
        with pytest.raises(PrivFedError, match=f"{option}.*cannot be read"):
            load(tmp_path / "nowhere")
    with pytest.raises(PrivFedError, match="is no Ed25519"):
        load_private_key(keys[1])
    with pytest.raises(PrivFedError, match="is no Ed25519"):
        load_public_key(keys[0])
