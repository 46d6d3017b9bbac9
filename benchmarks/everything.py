"""Every table of RESULTS.md anew, one benchmark after another; about half an hour on two quiet cores.

    python benchmarks/everything.py                     # all of them, into RESULTS.md
    python benchmarks/everything.py --only W1,secagg-50

A benchmark that fails leaves its old table and is named at the end; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

ENGINES = ["--engines", "privfed,privfed-ring,pfl,fedjax,tff"]
SECAGG = ["secagg.py", "--dim"]
BENCHMARKS = {
    "W1": ["engine.py", "--workload", "W1", *ENGINES],
    "W2": ["engine.py", "--workload", "W2", *ENGINES],
    "W3": ["engine.py", "--workload", "W3", *ENGINES],
    "scaling": ["scaling.py"],
    "scale": ["scale.py"],
    "secagg-50": [*SECAGG, "1000000", "--clients", "50", "--dropout", "0.1", "--peers", "flower"],
    "secagg-1000": [*SECAGG, "1000000", "--clients", "1000", "--dropout", "0.05", "--cores", "2"],
    "secagg-10000": [*SECAGG, "10000", "--clients", "10000"],
    "homomorphic": ["homomorphic.py", "--clients", "20", "--dim", "100000"],
    "attacks": ["attacks.py", "--peers", "breaching"],
}
"""Each with the arguments that make its table."""


def main() -> int:
    """Run those asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(BENCHMARKS), help=f"comma-separated: {', '.join(BENCHMARKS)}")
    parser.add_argument("--markdown", type=Path, default=HERE / "RESULTS.md", help="where the tables go")
    args = parser.parse_args()
    names = args.only.split(",")
    if unknown := [name for name in names if name not in BENCHMARKS]:
        parser.error(f"--only {', '.join(unknown)}: known are {', '.join(BENCHMARKS)}")
    failed = []
    for number, name in enumerate(names, 1):
        script, *options = BENCHMARKS[name]
        started = time.monotonic()
        print(f"{number}/{len(names)} {name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / script), *options, "--markdown", str(args.markdown)]
        code = subprocess.run(command, check=False).returncode
        print(f"{name}: {time.monotonic() - started:.0f} s, exit code {code}", file=sys.stderr, flush=True)
        failed += [name] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
