"""Who may import whom, read off the syntax tree of every module; a module that no rule covers fails as well."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIRST_PARTY = ("privfed", "attacks")
TENSORFLOW = ("tensorflow", "tensorflow_datasets", "tensorflow_federated", "tensorflow_privacy")

EVERYBODY = (
    "privfed.api",
    "privfed.cli",
    "privfed.cli_accounting",
    "privfed.cli_network",
    "privfed.cli_pki",
    "privfed.cli_runs",
    "privfed.network.join",
    "privfed.network.replay",
    "privfed.network.serve",
    "privfed.sweep",
    "privfed.audited",
    "privfed.defences",
    "privfed.composition",
    "privfed.experiment",
    "privfed.runs",
    "privfed.exposure",
    "privfed.attack_scores",
    "privfed.membership",
    "privfed.comparison",
    "privfed.auditing",
    "privfed.empirical_evidence",
    "privfed.measurements",
    "privfed.memory",
    "privfed.recomputation",
    "privfed.verdict",
    "privfed.verification",
    "privfed.audit.assemble",
    "privfed.sweep.worker",
)
"""The composition root and the commands: they know everybody, and nobody else knows them."""

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # Libraries of their own.
    "privfed.secagg": (),
    "privfed.privacy": (),
    # Foundations.
    "privfed": (),
    "privfed.errors": (),
    "privfed.files": (),
    "privfed.config": ("privfed.contradictions", "privfed.errors"),
    "privfed.contradictions": ("privfed.config",),
    "privfed.settings_file": ("privfed.config", "privfed.contradictions", "privfed.errors"),
    "privfed.rundir": ("privfed.config", "privfed.errors", "privfed.files", "privfed.settings_file"),
    "privfed.auxiliary": ("privfed.models",),
    "privfed.transcript": ("privfed.auxiliary", "privfed.errors", "privfed.files", "privfed.models"),
    "privfed.data": ("privfed.errors", "privfed.files"),
    "privfed.models": ("privfed.errors",),
    # Training.
    "privfed.federated": (
        "privfed.errors",
        "privfed.files",
        "privfed.models",
        "privfed.privacy",
        "privfed.secagg",
        "privfed.transcript",
    ),
    "privfed.executors": ("privfed.errors", "privfed.federated", "privfed.models"),
    "privfed.network": (
        "privfed.config",
        "privfed.errors",
        "privfed.federated",
        "privfed.files",
        "privfed.privacy",
        "privfed.secagg",
        "privfed.settings_file",
    ),
    # Judging and showing. Attacks get a view and a model, and nothing that knows the truth.
    "attacks": ("privfed.auxiliary", "privfed.models", "privfed.transcript"),
    "privfed.audit": (
        "privfed.data",
        "privfed.errors",
        "privfed.federated",
        "privfed.models",
        "privfed.privacy",
        "privfed.transcript",
    ),
    "privfed.audit.evidence": (),
    "privfed.report": ("privfed.audit.evidence", "privfed.errors"),
    "privfed.manifest": ("privfed.errors", "privfed.files"),
    "privfed.publication": ("privfed.audit.evidence", "privfed.errors", "privfed.manifest", "privfed.report"),
    "privfed.tensorboard": (),
    "privfed.schemes": ("privfed.config", "privfed.privacy"),
    "privfed.starter": ("privfed.config", "privfed.errors", "privfed.files", "privfed.settings_file"),
    "privfed.doctor": ("privfed.privacy", "privfed.secagg"),
    "privfed.console": ("privfed.audit.evidence", "privfed.errors"),
    # Many runs. Training is left to worker processes, which are started and not imported.
    "privfed.sweep": (
        "privfed.audit.evidence",
        "privfed.config",
        "privfed.console",
        "privfed.errors",
        "privfed.executors.ray_cluster",
        "privfed.files",
        "privfed.privacy",
        "privfed.report",
        "privfed.rundir",
    ),
}
"""By part (a package or a module; the longest name that fits counts), what of ours it imports beside itself."""

RENDERERS = ("jinja2", "markupsafe", "pydantic")
"""The packages of others that the report needs: it draws its figures itself, from evidence alone."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path.read_text(encoding="utf-8")
    for package in FIRST_PARTY
    for path in sorted((ROOT / package).rglob("*.py"))
}
PACKAGES = {module_name(path) for package in FIRST_PARTY for path in (ROOT / package).rglob("__init__.py")}


def inside(name: str, part: str) -> bool:
    """Whether ``name`` is the module or package ``part``, or in it; ``privfed`` is its ``__init__`` only."""
    return name == part or (part != "privfed" and name.startswith(f"{part}."))


def imports(module: str, source: str) -> Iterator[str]:
    """Full names of all that ``module`` imports: anywhere in it, under ``TYPE_CHECKING`` and in functions too.

    ``from package import name`` gives ``package.name``: ``package`` covers it, whether it is a module or not.
    """
    package = module if module in PACKAGES else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def rule_of(module: str) -> str | None:
    """The part that ``module`` belongs to."""
    return max((part for part in MAY_IMPORT if inside(module, part)), key=len, default=None)


def faults(module: str, source: str) -> list[str]:
    """Imports of ours that no rule allows, and TensorFlow where it must not be, in words."""
    if any(inside(module, part) for part in EVERYBODY):
        return []
    part = rule_of(module)
    if part is None:
        return [f"{module} belongs to no part: add a rule for it"]
    allowed = (part, *MAY_IMPORT[part])
    found = []
    for name in imports(module, source):
        top = name.split(".")[0]
        # "from privfed import __version__" names the package itself, which holds nothing else.
        if top in FIRST_PARTY and name != "privfed.__version__" and not any(inside(name, a) for a in allowed):
            found.append(f"{module} imports {name}")
        if any(inside(name, command) for command in EVERYBODY):
            found.append(f"{module} imports the command {name}")
        if top in TENSORFLOW and part in ("privfed.secagg", "privfed.privacy"):
            found.append(f"{module} imports {name}")
        if top == "tensorflow_federated" and "tff" not in module.rpartition(".")[2]:
            found.append(f"{module} imports {name}, and has no tff in its name")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_what_it_may(module: str) -> None:
    assert faults(module, MODULES[module]) == []


def test_every_rule_is_of_something_that_is_there() -> None:
    for part in {*MAY_IMPORT, *EVERYBODY, *(allowed for row in MAY_IMPORT.values() for allowed in row)}:
        assert part in MODULES


def test_the_report_needs_nothing_that_computes() -> None:
    others = {
        name.split(".")[0]
        for module, source in MODULES.items()
        if inside(module, "privfed.report")
        for name in imports(module, source)
    } - sys.stdlib_module_names
    assert others - set(FIRST_PARTY) <= set(RENDERERS)


@pytest.mark.parametrize(
    ("module", "source", "named"),
    [
        ("privfed.secagg.client", "import tensorflow as tf", "tensorflow"),
        ("privfed.secagg.client", "from privfed.privacy.noise import gaussian", "privfed.privacy.noise.gaussian"),
        ("privfed.secagg.client", "from privfed import errors", "privfed.errors"),
        ("privfed.secagg.client", "from .. import errors", "privfed.errors"),
        ("privfed.secagg.client", "from ..privacy.noise import gaussian", "privfed.privacy.noise.gaussian"),
        ("privfed.secagg", "from ..privacy import noise", "privfed.privacy.noise"),
        ("privfed.privacy.noise", "def f():\n    from privfed.secagg import codec", "privfed.secagg.codec"),
        ("privfed.privacy.noise", "if TYPE_CHECKING:\n    import privfed.data", "privfed.data"),
        ("privfed.privacy.noise", "importlib.import_module('tensorflow_federated')", "tensorflow_federated"),
        ("privfed.privacy.mechanisms.central", "import attacks", "attacks"),
        ("attacks.runner", "from privfed.data import Population", "privfed.data.Population"),
        ("attacks.runner", "from privfed.transcript_of_mine import View", "privfed.transcript_of_mine.View"),
        ("privfed.report.page", "from privfed.audit.assemble import assemble", "privfed.audit.assemble.assemble"),
        ("privfed.report.page", "from privfed.audit import membership", "privfed.audit.membership"),
        ("privfed.federated.round", "import privfed.experiment", "privfed.experiment"),
        ("privfed.federated.round", "import tensorflow_federated as tff", "tensorflow_federated"),
        ("privfed", "from privfed.config import Settings", "privfed.config.Settings"),
        ("privfed.brand_new", "", "belongs to no part"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, named: str) -> None:
    assert named in " ".join(faults(module, source))


def test_allowed_imports_are_not_found() -> None:
    assert faults("attacks.runner", "from attacks import base\nimport numpy\nimport privfed.models.zoo") == []
    assert faults("privfed.secagg.client", "from . import codec\nfrom .codec import x\nimport cryptography") == []
    assert faults("privfed.executors.tff_new", "import tensorflow_federated") == []


def test_help_account_and_calibrate_do_not_wait_for_tensorflow() -> None:
    terms = ["--sampling", "poisson", "--rate", "0.1", "--rounds", "3", "--delta", "1e-5", "--json"]
    commands = [
        ["--help"],
        *([name, "--help"] for name in ("audit", "train", "attack", "verify", "report", "compare", "datasets")),
        ["account", "--noise-multiplier", "1", *terms],
        ["calibrate", "--epsilon", "3", *terms],
        ["datasets", "--json"],
    ]
    program = f"""
import json, sys
from privfed.cli import app
loaded = {{}}
for arguments in {commands!r}:
    app(arguments, standalone_mode=False)
    loaded[" ".join(arguments)] = [name for name in {TENSORFLOW!r} if name in sys.modules]
print(json.dumps(loaded), file=sys.stderr)
"""
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert got.returncode == 0, got.stderr
    assert json.loads(got.stderr.splitlines()[-1]) == {" ".join(arguments): [] for arguments in commands}
