"""Wrong input at the command line: one line that says what, where, which value and the way out; exit code 2.

The commands run in this process, since each process of its own waits ten seconds for TensorFlow; the last test
runs one from outside. What was refused must not stand in the way of the same command with its input put right.
"""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from privfed.cli import main

sys.path.insert(0, str(Path(__file__).parent / "data"))
from idx_writer import small_set, write_folder

DIGITS = Path(__file__).parents[1] / "examples" / "digits.toml"
IMAGES, LABELS = small_set()
TRAIN_IMAGES = "train-images-idx3-ubyte.gz"
Run = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: its exit code and its lines on standard error."""

    def command(*arguments: object) -> tuple[int, list[str]]:
        monkeypatch.setattr(sys, "argv", ["privfed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        return int(caught.value.code or 0), capsys.readouterr().err.splitlines()

    return command


def check_refusal(result: tuple[int, list[str]], *words: str) -> None:
    code, lines = result
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("privfed: ")
    for word in words:
        assert word in lines[0]


def write_data(folder: Path, images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> Path:
    return write_folder(folder, (images, labels), (IMAGES, LABELS))


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """One round on a folder of tiny images, which are as they should be."""
    path = tmp_path / "tiny.toml"
    folder = write_data(tmp_path / "images")
    path.write_text(
        f'[data]\nsource = "idx"\nfolder = "{folder}"\nclients = 4\n'
        "[training]\nrounds = 1\n[attacks]\nenabled = false\n"
    )
    return path


def test_encryption_without_its_library(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *a: None if name == "tenseal" else there(name, *a)
    )
    out = tmp_path / "run"
    refused = run("train", DIGITS.with_name("homomorphic.toml"), "--out", out)
    check_refusal(refused, "secure_aggregation.mode: ", "needs TenSEAL", "pip install 'privfed[homomorphic]'")
    assert not list(out.rglob("ledger*"))


def test_serving_without_a_list_of_clients(run: Run, tmp_path: Path) -> None:
    """Whoever is not listed ends in the handshake: to do without, one has to say so."""
    from privfed.network import pki

    authority, out = tmp_path / "ca", tmp_path / "run"
    pki.create(authority)
    identity, listed = pki.issue(authority, server="127.0.0.1"), authority / "clients.pem"
    pki.issue(authority, client=0)
    listed.unlink()
    serve = ("serve", DIGITS.with_name("network.toml"), "--listen", "127.0.0.1:0", "--out", out)
    given = ("--identity", identity, "--revoked", authority / "revoked.pem")
    check_refusal(run(*serve, *given), f"--clients {listed}: cannot be read", "say --any-client")
    check_refusal(run(*serve, *given, "--clients", listed, "--any-client"), "--clients: ", "Keep one")
    assert not out.exists()


def test_missing_experiment(run: Run, tmp_path: Path) -> None:
    missing, out = tmp_path / "none.toml", tmp_path / "run"
    words = (str(missing), "no such experiment file", "examples/digits.toml")
    for command in ("train", "audit"):
        check_refusal(run(command, missing, "--out", out), *words)
    check_refusal(run("attack", missing), *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["colour=1"], ["colour: unknown key (got 1)", "Known here: name, executor"]),
        (["privacy.colour=1"], ["privacy.colour: unknown key (got 1)", "Known here: mechanism"]),
        (["privacy.epsilon=0"], ["privacy.epsilon: must be greater than 0 (got 0)", "README"]),
        (["cohort.rate=1.5"], ["cohort.rate: must be less than or equal to 1 (got 1.5)", "README"]),
        (
            ["secure_aggregation.threshold=100"],
            ["secure_aggregation.threshold: ", "53.85 clients on average (got 100)", "Lower the threshold"],
        ),
        (
            ["training.weighted=true"],
            ["training.weighted: ", "(got True)", "Set training.weighted = false with a privacy mechanism"],
        ),
        (["privacy.noise_multiplier=1"], ["privacy: epsilon and noise_multiplier are both given", "keep one"]),
        (["privacy.clip_norm=none"], ["privacy: clip_norm is missing"]),
        (["data.clients=2000"], ["data.clients: ", "1,438 examples (got 2000)", "Make it smaller"]),
        (["data.source=nowhere"], ["data.source: unknown source (got 'nowhere')", "Known: digits"]),
        (["data.source=idx"], ["data.folder: is missing", "Set it"]),
        (["data.source=idx", "data.folder=/nowhere/at/all"], ["/nowhere/at/all: no such folder of IDX files"]),
        (["model.name=resnet"], ["model.name: unknown model (got 'resnet')", "Known: softmax"]),
        (['attacks.methods=["imprint"]'], ["attacks.methods: needs a model that the server crafted", "'imprint'"]),
        (
            ['attacks.methods=["magic"]'],
            ["attacks.methods: no such attack (got 'magic')", "Known: auto, dense_layer"],
        ),
        (["privacy.max_epsilon=0.01"], ["privacy.max_epsilon: a single round spends more (got 0.01)", "Raise it"]),
        (
            ["privacy.mechanism=banded"],
            ["cohort.sampling: banded noise needs cohorts in a fixed order", "round_rob"],
        ),
        (
            ["cohort.sampling=round_robin", "cohort.rate=none", "cohort.size=9"],
            ["cohort.sampling: gaussian noise is not accounted for round-robin cohorts", '"banded" or "tree"'],
        ),
        (["privacy.mechanism=local"], ["secure_aggregation.mode: local noise has no bound", 'mode = "off"']),
        (
            ["privacy.mechanism=skellam", "secure_aggregation.mode=off"],
            ["secure_aggregation.mode: skellam noise is summed as integers", 'mode = "protocol"'],
        ),
        (
            ["secure_aggregation.mode=bfv", "secure_aggregation.ring_bits=64"],
            ["secure_aggregation.ring_bits: whole sums are encrypted", "(got 64)", "Give a number from 8 to 40"],
        ),
        (
            ["secure_aggregation.mode=bfv", "secure_aggregation.ring_bits=auto"],
            ["secure_aggregation.ring_bits: what it takes, several coordinates", "Give a number from 8 to 40"],
        ),
        (
            ["privacy.against=server"],
            ["privacy.against: the mechanism gaussian does not protect from it", "release"],
        ),
        (["epsilon"], ["--set: an override is written key.path=value (got 'epsilon')", "privacy.epsilon=4"]),
    ],
)
def test_wrong_settings(run: Run, tmp_path: Path, changes: list[str], words: list[str]) -> None:
    overrides = [part for change in changes for part in ("--set", change)]
    out = tmp_path / "run"
    check_refusal(run("train", DIGITS, "--out", out, *overrides), *words)
    assert not out.exists() or not any(out.iterdir())


def with_pixel(value: float) -> np.ndarray:
    images = (IMAGES / 255).astype(np.float32)  # IDX type 0x0D
    images[13, 1, 1] = value
    return images


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    """One bit in the middle, whatever DEFLATE makes of it."""
    return content[:60] + bytes([content[60] ^ 1]) + content[61:]


DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "empty": (
        lambda folder: write_data(folder, IMAGES[:0], LABELS[:0]),
        [TRAIN_IMAGES, "the dataset is empty", "name another folder"],
    ),
    "NaN": (
        lambda folder: write_data(folder, with_pixel(np.nan)),
        ["images: client ", "1 example with pixels that are not finite (NaN", "Repair or remove them"],
    ),
    "infinite": (
        lambda folder: write_data(folder, with_pixel(np.inf)),
        ["images: client ", "1 example with pixels that are not finite", "Repair or remove them"],
    ),
    "out of range": (
        lambda folder: write_data(folder, with_pixel(7.5)),
        ["images: client ", "pixels outside [0, 1] (got 7.5)", "Scale"],
    ),
    "truncated gzip": (
        lambda folder: _rewrite(folder, cut),
        [TRAIN_IMAGES, "is truncated: the gzip stream ends early", "Download it again"],
    ),
    "flipped bit": (lambda folder: _rewrite(folder, flipped), [TRAIN_IMAGES, "corrupt", "Download it again"]),
    "truncated inside": (
        lambda folder: _rewrite(folder, lambda content: gzip.compress(gzip.decompress(content)[:-1])),
        [TRAIN_IMAGES, "is truncated", "shape (40, 3, 5)"],
    ),
    "wrong magic": (
        lambda folder: _rewrite(folder, lambda content: gzip.compress(b"\x01\x02\x03\x04" + bytes(100))),
        [TRAIN_IMAGES, "wrong magic number (got '01020304')", "download it again"],
    ),
    "no gzip": (lambda folder: _rewrite(folder, lambda content: b"<html>"), [TRAIN_IMAGES, "is not a gzip file"]),
    "missing": (
        lambda folder: (folder / TRAIN_IMAGES).unlink(),
        ["images: no file of train images here", "Give the folder"],
    ),
}


def _rewrite(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / TRAIN_IMAGES
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_data(run: Run, experiment: Path, tmp_path: Path, damage: str) -> None:
    spoil, words = DAMAGE[damage]
    spoil(tmp_path / "images")
    out = tmp_path / "run"
    check_refusal(run("train", experiment, "--out", out), *words)
    assert list(out.iterdir()) == []


def test_a_right_rerun_in_the_same_folder(run: Run, experiment: Path, tmp_path: Path) -> None:
    """Put right in the data, or in the settings: neither is another run, since no run began."""
    out, folder = tmp_path / "run", tmp_path / "images"
    write_data(folder, with_pixel(np.nan))
    check_refusal(run("train", experiment, "--out", out), "not finite")
    write_data(tmp_path / "mended")
    change = ["--set", f"data.folder={tmp_path / 'mended'}"]
    code, _ = run("train", experiment, "--out", out, *change)
    assert code == 0
    assert run("verify", out)[0] == 0
    # From here on the folder is taken.
    write_data(folder)
    check_refusal(
        run("train", experiment, "--out", out),
        f"--out {out}: already holds another run: there data.folder is ",
        "mended",
        "Name another folder",
    )
    assert run("verify", out)[0] == 0
    assert run("train", experiment, "--out", out, *change)[0] == 0


def test_a_training_that_diverges(run: Run, experiment: Path, tmp_path: Path) -> None:
    """Known only once it trains, after its progress: the last line says so, and the folder can still be judged."""
    out = tmp_path / "run"
    changes = ["training.rounds=3", "training.learning_rate=1e37", "training.server_learning_rate=1e30"]
    code, lines = run("train", experiment, "--out", out, *(part for c in changes for part in ("--set", c)))
    assert code == 2
    check_refusal(
        (code, lines[-1:]), "training: ", "diverged: after round 1 ", "Lower training.server_learning_rate"
    )
    assert not any("Warning" in line or "Traceback" in line for line in lines)
    assert run("verify", out)[0] == 0


@pytest.mark.parametrize("command", ["train", "audit"])
def test_a_folder_that_cannot_be_written(run: Run, experiment: Path, tmp_path: Path, command: str) -> None:
    out = tmp_path / "file" / "run"
    (tmp_path / "file").write_text("not a folder")
    words = ("cannot be written", "Name another folder")
    check_refusal(run(command, experiment, "--out", out), f"--out {out}: ", *words)
    check_refusal(run(command, experiment, "--out", out.parent), f"--out {out.parent}: ", *words)
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_others(run: Run, experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "theirs"
    out.mkdir(mode=0o555)
    check_refusal(run("train", experiment, "--out", out), f"--out {out}: cannot be written: Permission denied")


def test_a_folder_that_holds_foreign_files(run: Run, experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "thesis"
    out.mkdir()
    (out / "chapter.txt").write_text("dear")
    result = run("audit", experiment, "--out", out)
    check_refusal(result, f"--out {out}: ", "holds no run of ours (got 'chapter.txt')", "Name an empty or a new")
    assert [path.name for path in out.iterdir()] == ["chapter.txt"]
    (out / "chapter.txt").unlink()
    assert run("train", experiment, "--out", out)[0] == 0


def test_a_folder_whose_settings_cannot_be_read(run: Run, experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.toml").write_text("[data")
    result = run("train", experiment, "--out", out)
    check_refusal(result, f"--out {out}: holds a run whose settings cannot be read", "Name another folder")
    assert (out / "config.toml").read_text() == "[data"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("verify {}", ["{}: holds no run", "Name a folder that --out named"]),
        ("report {}", ["report.json: no such report", "Name a folder that a run wrote"]),
        ("attack DIGITS --observer neighbour", ["--observer: no such observer (got 'neighbour')", "Known: "]),
        ("account --noise-multiplier 1 --sampling poisson --rounds 3 --delta 1e-5", ["--rate: is missing"]),
        (
            "account --noise-multiplier 1 --sampling poisson --rounds 3 --delta 1e-5 --rate 1.5",
            ["(0, 1] (got 1.5)"],
        ),
        ("account --noise-multiplier 1 --sampling all --rounds 3 --delta 1e-5 --rate .1", ["--rate: does not go"]),
        ("account --noise-multiplier nan --sampling all --rounds 3 --delta 1e-5", ["noise_multiplier", "nan"]),
        ("calibrate --epsilon 0 --sampling all --rounds 3 --delta 1e-5", ["epsilon: ", "positive", "(got 0.0)"]),
        ("calibrate --epsilon 1 --sampling all --rounds 3 --delta 0", ["delta: lies in (0, 1) (got 0.0)"]),
        ("calibrate --epsilon 1 --sampling all --rounds 3 --delta 2", ["delta: lies in (0, 1) (got 2.0)"]),
    ],
)
def test_other_commands(run: Run, tmp_path: Path, arguments: str, words: list[str]) -> None:
    names = {"{}": str(tmp_path), "DIGITS": str(DIGITS)}
    given = [names.get(argument, argument) for argument in arguments.split()]
    check_refusal(run(*given), *(word.replace("{}", str(tmp_path)) for word in words))


@pytest.mark.slow
def test_from_outside(privfed_command: list[str], experiment: Path, tmp_path: Path) -> None:
    """TensorFlow and its libraries, which write to standard error on their own, add nothing to the line."""
    write_data(tmp_path / "images", with_pixel(np.nan))
    command = [*privfed_command, "train", str(experiment), "--out", str(tmp_path / "run")]
    got = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert got.stdout == ""
    check_refusal((got.returncode, got.stderr.splitlines()), "not finite")
