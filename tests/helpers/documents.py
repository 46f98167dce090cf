"""The documents as tests read them: which they are, their code, their links and their anchors."""

import re
from collections.abc import Iterator
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
GENERATED = {ROOT / "docs/reference/command-line.md", ROOT / "docs/reference/python.md"}
SITE = sorted((ROOT / "docs").rglob("*.md"))
# What people write: the generated pages would make every claim about them true.
WRITTEN = [ROOT / "README.md", *(path for path in SITE if path not in GENERATED)]
MORE = [
    ROOT / name
    for name in (
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "components/README.md",
        "docker/kubernetes/README.md",
        "mlflow_project/README.md",
    )
]
EVERY = [ROOT / "README.md", *SITE, *MORE]
FENCE = re.compile(r"^```[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}[^\n]*\n)+", re.MULTILINE)


def read_written() -> str:
    """Return the README and the written pages of the site as one text."""
    return "\n".join(path.read_text(encoding="utf-8") for path in WRITTEN)


def find_code(text: str) -> list[str]:
    """Return the lines of code blocks, fenced or indented; a continued line is one."""
    blocks = [*FENCE.findall(text), *INDENTED.findall(FENCE.sub("", text))]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines]


def find_commands(text: str) -> list[list[str]]:
    """Return each use of the command in code blocks and in inline code, as its words."""
    prose = FENCE.sub("", text)
    spans = [*find_code(text), *re.findall(r"`([^`\n]+)`", prose)]
    parts = [part.strip() for span in spans for part in re.split(r"&&|#", span)]
    return [part.split()[1:] for part in parts if part.startswith("expunge ")]


def walk_commands(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield each command below this one, with the words that name it."""
    if not isinstance(command, click.Group):
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None, name
        yield (*path, name), found
        yield from walk_commands(found, (*path, name))


def find_links(path: Path) -> list[str]:
    """Return where the links and pictures of a page lead, but for addresses of the web."""
    text = re.sub(r"`[^`\n]*`", "", FENCE.sub("", path.read_text(encoding="utf-8")))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not re.match(r"https?:", target)]


def find_anchors(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }
