"""What MkDocs needs to build the site: pages made from the code, files from outside of docs/, formulas as MathML.

A hook of ``mkdocs.yml``. MkDocs is imported where it is needed, so that tests can make the pages without it.
"""

from __future__ import annotations

import html
import inspect
import posixpath
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # of the checkout that is built, whatever else is installed

REPOSITORY = "repository"
"""Folder of the site with the files from outside of docs/ that pages link to."""
ALWAYS = ("CHANGELOG.md", "benchmarks/README.md", "benchmarks/RESULTS.md")
"""Files from outside of docs/ that the navigation names."""
PYTHON: Mapping[str, str] = {
    "api": "privfed.api",
    "privacy": "privfed.privacy",
    "secagg": "privfed.secagg",
    "federated": "privfed.federated",
    "executors": "privfed.executors",
    "data": "privfed.data",
    "models": "privfed.models",
    "audit": "privfed.audit",
    "network": "privfed.network",
    "attacks": "attacks",
}
"""Pages of the reference made from docstrings."""
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w-]+) +(?P<rest>\S.*)$", re.MULTILINE)
"""The opening of a fenced block that says more than its language: how the tests run it."""
LINK = re.compile(r"(\]\()((?:\.\./)+[^)\s#]+)")
"""A link that goes up: perhaps out of docs/."""


def settings_page() -> str:
    """Every key of the settings with type, default and meaning, from the models themselves."""
    from pydantic import BaseModel

    from privfed.config import Settings

    schema = Settings.model_json_schema()
    plain, tables = [], []
    for key, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            title = " ".join((section.__doc__ or "").split()).partition(": ")[2]
            rows = _rows(section, schema["$defs"][section.__name__]["properties"], f"{key}.")
            tables.append(f"## `[{key}]`\n\n{title[:1].upper()}{title[1:]}\n\n{_table(rows)}")
        else:
            plain.append(key)
    top = _rows(Settings, {key: schema["properties"][key] for key in plain}, "")
    return "\n\n".join(
        [
            "# Settings",
            "One TOML file is one experiment; `--set key.path=value` overrides any key. An unknown key, a wrong "
            "type or two settings that contradict each other are one line and exit code 2. `privfed init` writes "
            "a file with all of these, explained. This page is made from the models in `privfed/config/`.",
            "## Top",
            _table(top),
            *tables,
            "",
        ]
    )


def _rows(section: Any, properties: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, ...]]:
    from privfed.starter import documentation

    meanings = documentation(section)
    for key, schema in properties.items():
        default = section.model_fields[key].default
        shown = "–" if default is None else f"`{_toml(default)}`"
        yield f"`{prefix}{key}`", _type(schema), shown, meanings.get(key, "").replace("``", "`")


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{word}`" for word in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    name = {"string": "text", "integer": "integer", "number": "number", "boolean": "true or false"}[schema["type"]]
    bounds = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    limits = [f"{sign} {schema[bound]:g}" for bound, sign in bounds if bound in schema]
    limits += [f"a multiple of {schema['multipleOf']}"] if "multipleOf" in schema else []
    return " ".join([name, ", ".join(limits)]).strip()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return f'"{value}"' if isinstance(value, str) else f"{value:g}"


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cli_page() -> str:
    """Every command with its arguments and options: what ``--help`` prints, from the same objects."""
    import typer
    from typer.main import get_command

    from privfed.cli import app

    pages = [
        "# Command line",
        "What `privfed --help` and `privfed COMMAND --help` print, made from the same objects. What the commands "
        "return to a shell: [exit codes](exit-codes.md).",
    ]

    def describe(command: Any, path: str) -> None:
        context = typer.Context(command, info_name=path)
        pages.append(f"## `{path}`")
        pages.append(inspect.cleandoc(command.help or ""))
        usage = " ".join(command.collect_usage_pieces(context))
        pages.append(f"```text\n{path} {usage}\n```")
        records = [p.get_help_record(context) for p in command.get_params(context) if p.name != "help"]
        if records:
            rows = "\n".join(f"| `{_cell(name)}` | {_cell(said)} |" for name, said in records)
            pages.append(f"| argument or option | meaning |\n|---|---|\n{rows}")
        for name in getattr(command, "commands", {}):
            describe(command.commands[name], f"{path} {name}")

    describe(get_command(app), "privfed")
    return "\n\n".join(pages) + "\n"


def python_page(module: str) -> str:
    """The reference of one package, which mkdocstrings fills in."""
    return f"# {module}\n\n::: {module}\n"


def generated() -> dict[str, str]:
    """Every page that nobody writes by hand, by its place in the site."""
    pages = {"reference/settings.md": settings_page(), "reference/cli.md": cli_page()}
    return pages | {f"reference/python/{name}.md": python_page(module) for name, module in PYTHON.items()}


def outside(page: str, link: str) -> str | None:
    """The file of the repository that ``link`` on ``page`` of docs/ means; ``None`` where it stays in docs/."""
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if target.startswith(("docs/", "..")) else target


def on_config(config: Any) -> Any:
    """List pages that the navigation forgot, so that a new page is found at once."""
    listed = set(re.findall(r"[\w/-]+\.md", str(config["nav"])))
    docs = Path(config["docs_dir"])
    forgotten = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    rest = [page for page in forgotten if page not in listed]
    if rest:
        topics = next(entry["Topics"] for entry in config["nav"] if "Topics" in entry)
        topics.extend(rest)
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and the files outside of docs/ that pages link to."""
    from mkdocs.structure.files import File

    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    wanted = set(ALWAYS)
    for file in list(files.documentation_pages()):
        found = (outside(file.src_uri, link) for _, link in LINK.findall(file.content_string))
        wanted |= {target for target in found if target}
    for target in sorted(wanted):
        if (ROOT / target).is_file():  # a link to nothing stays as it is, and fails the build
            files.append(File.generated(config, f"{REPOSITORY}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links out of docs/ to the files in the site, and say beside a block what the tests do not run."""
    here = page.file.src_uri

    def redirected(match: re.Match[str]) -> str:
        target = outside(here, match[2])
        if target is None:
            return match[0]
        return match[1] + posixpath.relpath(f"{REPOSITORY}/{target}", posixpath.dirname(here) or ".")

    def opened(match: re.Match[str]) -> str:
        reason = re.search(r'skip="([^"]*)"', match["rest"])
        note = f"{match['indent']}*Not run by the tests: {reason[1]}.*\n\n" if reason else ""
        return f"{note}{match['indent']}```{match['language']}"

    return FENCE.sub(opened, LINK.sub(redirected, markdown))


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers show without a script; and no ``::`` before a docstring's example."""
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        shown = "block" if match["tag"] == "div" else "inline"
        return convert(html.unescape(match["tex"]).strip(), display=shown)

    pattern = r'<(?P<tag>div|span) class="arithmatex">\\[\[(](?P<tex>.*?)\\[\])]</(?P=tag)>'
    return re.sub(pattern, formula, content, flags=re.DOTALL).replace("<p>::</p>", "")
