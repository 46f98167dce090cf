"""Generator of two pages of the reference: the command line, and the public Python functions.

`python docs/write_reference.py` writes them. tests/docs/test_reference.py holds them against the
code, so a page that is out of date fails.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click

from expunge_pipelines.cli.main import cli

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
WIDTH = 88  # fits a page beside its table of contents
# Modules and packages that a program may call, by what it does with them.
LIBRARY = {
    "Run a pipeline": ["expunge_pipelines.jobs"],
    "Settings and errors": [
        "expunge.config",
        "expunge.policy",
        "expunge.environment",
        "expunge.errors",
    ],
    "Models and data": ["expunge.models", "expunge.data.sources"],
    "Files": ["expunge.formats"],
    "The method, on tensors": ["expunge.core"],
    "Registered versions": ["expunge.registry"],
    "The ledger": ["expunge.ledger"],
}
SKIP = {"migrations"}  # Alembic calls these, nobody else

COMMAND_LINE = """# Command line

`docs/write_reference.py` writes this page from the command itself.

Every command but `expunge ui` takes `--json`. Then stdout is one JSON document, also when the gate
rejects, and progress goes to stderr.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | refused: the gate rejects, a rollback is refused, or a request is still due |
| 2 | a mistake in the request; nothing was changed |
| 3 | a failure, or a measurement that cannot be trusted |
| 130, 143 | interrupted by Ctrl-C or SIGTERM |
"""

PYTHON = """# Python

`docs/write_reference.py` writes this page from the sources.

What the command does, a program can do too. This trains on the embedded digits and forgets the
class 3:

```python
from expunge.config import TrainConfig
from expunge_pipelines.jobs.forget import forget
from expunge_pipelines.jobs.train import train

recipe = TrainConfig(arch="mlp", epochs=60, batch_size=32, learning_rate=0.05)
trained = train("digits", "digits", recipe)
forgotten = forget("digits", ["3"])
print(forgotten["grade"], forgotten["version"])
```

A user's mistake and a failure raise an `ExpungeError`. A wrong call of `expunge.core` raises a
`ValueError`. Versions follow Semantic Versioning. The version is 0.x, so names may still change.
The changelog says which.

Shapes stand in names: `images_NCHW` is a batch of N images with C channels, of H x W pixels. K
counts codes.
"""


def render_command_line() -> str:
    """Return the page of the command line: the help of each command."""
    parts = [COMMAND_LINE]
    for level, path, text in walk_commands(cli, None, "expunge"):
        parts.append(f"{'#' * level} {path}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def walk_commands(
    command: click.Command, parent: click.Context | None, name: str, level: int = 2
) -> Iterator[tuple[int, str, str]]:
    """Yield the depth, the whole name and the help of a command and of all below it."""
    # Both widths: a wide terminal would otherwise change the page. The command's own settings have
    # the short form of --help; click reads them for a call only.
    settings = command.context_settings | {"terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent, info_name=name, **settings)
    text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
    yield level, context.command_path, text
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from walk_commands(found, context, child, level + (parent is not None))


def render_python() -> str:
    """Return the page of the public functions and classes, by module."""
    parts = [PYTHON]
    for heading, names in LIBRARY.items():
        parts.append(f"## {heading}\n")
        for name in names:
            for path in find_modules(name):
                parts.extend(render_module(path))
    return "\n".join(parts)


def find_modules(name: str) -> list[Path]:
    """Return the files of a package, or of the one module."""
    root = ROOT / ("components" if name.startswith("expunge.") else "pipelines")
    place = root.joinpath(*name.split("."))
    if not place.is_dir():
        return [place.with_suffix(".py")]
    return [path for path in sorted(place.rglob("*.py")) if not SKIP & set(path.parts)]


def render_module(path: Path) -> list[str]:
    """Return a module's part of the page; nothing for a module without public names."""
    # Parsed, not imported: the page takes no seconds for torch and MLflow.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    rows = [
        f"- `{sign(node)}`: {escape(summarise(node))}"
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
    ]
    if not rows:
        return []
    parts = path.relative_to(ROOT).with_suffix("").parts[1:]
    dotted = ".".join(part for part in parts if part != "__init__")
    return [f"### {dotted}\n", f"{escape(summarise(tree))}\n", "\n".join(rows), ""]


def sign(node: ast.FunctionDef | ast.ClassDef) -> str:
    """Return a function's name with those of its arguments, or a class's name."""
    if isinstance(node, ast.ClassDef):
        return node.name
    taken = node.args
    names = [entry.arg for entry in (*taken.posonlyargs, *taken.args)]
    names += [f"*{taken.vararg.arg}"] if taken.vararg else ["*"] if taken.kwonlyargs else []
    names += [entry.arg for entry in taken.kwonlyargs]
    names += [f"**{taken.kwarg.arg}"] if taken.kwarg else []
    return f"{node.name}({', '.join(names)})"


def summarise(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """Return the first paragraph of a docstring, on one line."""
    text = ast.get_docstring(node) or ""
    return " ".join(text.split("\n\n")[0].split())


def escape(text: str) -> str:
    """Return the text with its angle brackets as Markdown shows them, outside of code."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(
        piece if piece.startswith("`") else piece.replace("<", "&lt;").replace("*", r"\*")
        for piece in pieces
    )


PAGES = {"command-line.md": render_command_line, "python.md": render_python}


def main() -> None:
    """Write the pages."""
    for name, render in PAGES.items():
        (REFERENCE / name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
