"""Coverage-guided fuzzing of everything that reads bytes from a peer; run by ``make fuzz``, not by pytest.

    python tests/secagg/fuzz.py 20              # each target for 20 seconds
    python tests/secagg/fuzz.py wire -runs=1000 # one target, with libFuzzer's options

Needs ``atheris``. It starts from the messages of ``golden/round.txt`` and of a live session, ends with an error at
the first input that breaks a property, and leaves that input in a file.

wire      ``decode``: bytes are refused by name, or are exactly the encoding of the message they decode to.
sealed    ``unseal``: what is inside a seal is refused, or comes back as the same two shares.
machines  Clients and servers in every state: refused input changes nothing, and a server takes no bytes but those
          that a client signed.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["privfed.secagg"], enable_loader_override=False):
    from conftest import Session, snapshot
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from privfed.secagg import Client, Server, Stage, decode, encode, wire
    from privfed.secagg.errors import MalformedMessageError, RemoteError
    from privfed.secagg.keys import Purpose, Scope, unseal
    from privfed.secagg.messages import SHARE_BYTES
    from privfed.secagg.ring import RingVector
    from privfed.secagg.shamir import PRIME

GOLDEN = Path(__file__).parent / "golden" / "round.txt"
LEAST_EXECUTIONS = 1000
"""In any time that is worth the name: fewer means that nothing was fuzzed."""

Target = Callable[[bytes], None]


def fuzz_wire() -> tuple[Target, Iterable[bytes]]:
    """``decode``, with the sender that the bytes name, and with the server."""

    def target(data: bytes) -> None:
        sender = int.from_bytes(data[8:16], "big")
        for peer in (None, sender):
            try:
                message = decode(data, peer=peer)
            except RemoteError as refusal:
                assert refusal.offender == peer
                continue
            assert encode(rebuilt(message)) == encode(message) == data
            assert wire.size(message) == len(data)
            wire.check_form(message, peer=peer)

    return target, [bytes.fromhex(line.split()[-1]) for line in GOLDEN.read_text().splitlines()]


def rebuilt(message: Any) -> Any:
    """The same message without the bytes that it was read from, its vector included."""
    vectors = {name: value for name, value in vars(message).items() if isinstance(value, RingVector)}
    return replace(message, **{name: RingVector(v.bits, v.values) for name, v in vectors.items()})


def fuzz_sealed() -> tuple[Target, Iterable[bytes]]:
    """``unseal`` of whatever somebody with the right key may have sealed."""
    scope, key, nonce = Scope(Session().params), bytes(32), bytes(12)

    def target(data: bytes) -> None:
        box = AESGCM(key).encrypt(nonce, data, scope.info(Purpose.CHANNEL, 3, 7))
        try:
            shares = unseal(scope, key, 3, 7, nonce + box)
        except MalformedMessageError as refusal:
            assert refusal.offender == 3
        else:
            assert b"".join(share.to_bytes(SHARE_BYTES, "big") for share in shares) == data
            assert max(shares) < PRIME

    edges = (0, 1, PRIME - 1, PRIME)
    return target, [a.to_bytes(SHARE_BYTES, "big") + b.to_bytes(SHARE_BYTES, "big") for a in edges for b in edges]


class Machine:
    """A client or server that waits for messages; whatever it takes, it is put back."""

    def __init__(self, machine: Client | Server, peer: dict[int | None, bytes]) -> None:
        self.machine, self.expected = machine, peer
        self.saved, self.picture = self._copy(vars(machine)), snapshot(machine)

    @staticmethod
    def _copy(fields: dict[str, Any]) -> dict[str, Any]:
        return {
            n: copy.copy(v) if hasattr(v, "__setitem__") or isinstance(v, set) else v for n, v in fields.items()
        }

    def give(self, data: bytes) -> None:
        peer = None if isinstance(self.machine, Client) else int.from_bytes(data[8:16], "big")
        try:
            self.machine.receive(decode(data, peer=peer))
        except RemoteError:
            assert snapshot(self.machine) == self.picture, "a refused message changed the state"
            return
        if isinstance(self.machine, Server):
            assert self.expected.get(peer) == data, "the server took what nobody signed"
        vars(self.machine).clear()
        vars(self.machine).update(self._copy(self.saved))


def fuzz_machines() -> tuple[Target, Iterable[bytes]]:
    """State machines of one session for each stage; the first byte says which gets the rest."""
    machines = list(_machines())

    def target(data: bytes) -> None:
        if data:
            machines[data[0] % len(machines)].give(data[1:])

    corpus = [bytes((at,)) + data for at, m in enumerate(machines) for data in m.expected.values()]
    return target, corpus


def _machines() -> Iterator[Machine]:
    gone = [41]
    for stage in Stage:
        session = Session().run_to(stage, gone)
        if stage is Stage.UNMASK:
            session.reveal()
        waiting = {
            Stage.ADVERTISE_KEYS: session.advertised,
            Stage.SHARE_KEYS: session.shared,
            Stage.MASKED_INPUT: session.masked,
            Stage.CONSISTENCY: session.signed,
            Stage.UNMASK: session.reveals,
        }
        if stage is Stage.MASKED_INPUT:
            waiting[stage] = {i: session.clients[i].contribute(session.inputs[i]) for i in (3, 7, 20)}
        elif stage is Stage.CONSISTENCY:
            session.sign()
            waiting[stage] = session.signed
        messages = {i: encode(message) for i, message in waiting[stage].items()}
        yield Machine(session.server, messages)
    roster = Session().run_to(Stage.ADVERTISE_KEYS)
    yield Machine(roster.clients[7], {None: encode(roster.step(roster.advertised)[7])})
    inbox = Session().run_to(Stage.SHARE_KEYS)
    yield Machine(inbox.clients[7], {None: encode(inbox.step(inbox.shared)[7])})
    survivors = Session().run_to(Stage.CONSISTENCY, gone)
    yield Machine(survivors.clients[7], {None: encode(survivors.survivor_list)})
    request = Session().run_to(Stage.UNMASK, gone)
    yield Machine(request.clients[7], {None: encode(request.requests[7])})


TARGETS = {"wire": fuzz_wire, "sealed": fuzz_sealed, "machines": fuzz_machines}


def fuzz(name: str, options: list[str]) -> None:
    """Run one target in this process, which libFuzzer ends."""
    target, corpus = TARGETS[name]()
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(corpus):
            target(data)  # the corpus itself holds, or there is a traceback
            Path(folder, str(number)).write_bytes(data)
        atheris.Setup([sys.argv[0], "-print_final_stats=1", "-max_len=4096", *options, folder], target)
        atheris.Fuzz()


def fuzz_all(seconds: int) -> int:
    """Run each target in a process of its own, and say how many inputs it was given."""
    for name in TARGETS:
        command = [sys.executable, __file__, name, f"-max_total_time={seconds}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20 * seconds + 60)
        executed = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
        if done.returncode or executed is None or int(executed[1]) < LEAST_EXECUTIONS:
            print(done.stderr, file=sys.stderr)
            print(f"fuzz {name}: failed", file=sys.stderr)
            return 1
        print(f"fuzz {name}: {int(executed[1]):,} executions in {seconds} s, nothing found", flush=True)
    return 0


def main() -> int:
    if len(sys.argv) == 2 and sys.argv[1].isdigit():
        return fuzz_all(int(sys.argv[1]))
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        print(f"usage: fuzz.py SECONDS, or fuzz.py {'|'.join(TARGETS)} [libFuzzer's options]", file=sys.stderr)
        return 2
    fuzz(sys.argv[1], sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
