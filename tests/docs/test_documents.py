"""The documents say what the code has."""

import ast
import importlib
import re
from pathlib import Path

import click
import documents
import pytest
import yaml

from expunge import __version__
from expunge.environment import IMAGE
from expunge.ops import STEPS
from expunge_pipelines.cli.main import cli

ROOT = documents.ROOT
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = documents.read_written()
PORTS = (ROOT / "components" / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SOURCES = [*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py")]
COMMANDS = dict(documents.walk_commands(cli))
FLAG = r"(?<![\w-])--[a-z][a-z0-9-]+"
# Those of mlflow, curl, pip, docker and the benchmarks.
FOREIGN = {"--help", "--work", "--methods", "--env-manager", "--backend-store-uri", "--now"}


def flags_of(command: click.Command) -> set[str]:
    return {flag for p in command.params for flag in p.opts if flag.startswith("--")} | {"--help"}


def find_command(words: list[str]) -> tuple[str, ...]:
    """Find the longest name of a command at the beginning of these words."""
    for length in (2, 1):
        if tuple(words[:length]) in COMMANDS:
            return tuple(words[:length])
    return ()


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 8192


def test_the_limits_stand_in_the_first_screen_of_the_readme() -> None:
    screen = "\n".join(README.splitlines()[:30])
    for words in ("reaches the body of the network in part", "finds nearly all", "not single"):
        assert words in screen
    assert "No grade is a proof" in screen


def test_the_documents_name_every_command_and_no_other() -> None:
    used = documents.find_commands(DOCS)
    assert [words for words in used if not find_command(words)] == []
    groups = {path[:1] for path in COMMANDS if len(path) == 2}
    assert {find_command(words) for words in used} | groups == set(COMMANDS)


def test_an_example_gives_a_command_only_its_own_options() -> None:
    for words in documents.find_commands(DOCS):
        command = COMMANDS[find_command(words)]
        given = set(re.findall(FLAG, " ".join(words)))
        assert given <= flags_of(command), " ".join(words)


def test_every_option_in_the_documents_exists() -> None:
    known = {flag for command in COMMANDS.values() for flag in flags_of(command)} | FOREIGN
    assert set(re.findall(FLAG, DOCS)) <= known


@pytest.mark.parametrize("command", ["train", "forget"])
def test_the_documents_name_every_option_of_a_pipeline(command: str) -> None:
    assert flags_of(COMMANDS[(command,)]) - {"--help"} <= set(re.findall(FLAG, DOCS))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"(?:^(?: {4})?|`)make ([\w-]+)", DOCS + CONTRIBUTING, flags=re.MULTILINE)
    assert {"demo", "test", "docs"} <= set(named)
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_contributing_has_every_make_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert phony
    assert set(phony[1].split()) <= set(re.findall(r"`?make ([\w-]+)", CONTRIBUTING))


@pytest.mark.parametrize("page", documents.EVERY, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """To a file, and to a heading in it where they name one."""
    for link in documents.find_links(page):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), link
        if anchor:
            assert anchor in documents.find_anchors(target), link


@pytest.mark.parametrize("page", documents.SITE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_of_the_site_stands_in_its_contents(page: Path) -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    name = str(page.relative_to(ROOT / "docs").with_suffix(""))
    assert name == "index" or re.search(rf"^(.+ <)?{name}>?$", index, flags=re.MULTILINE)


def test_files_that_a_page_takes_in_exist() -> None:
    found = 0
    for page in documents.SITE:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"^```\{(?:literal)?include\} (\S+)$", text, flags=re.MULTILINE):
            assert (page.parent / target).is_file(), target
            found += 1
    assert found


def test_paths_in_the_documents_exist() -> None:
    tops = "components|pipelines|mlflow_project|docs|docker|tests"
    more = (ROOT / "SECURITY.md").read_text(encoding="utf-8") + CONTRIBUTING
    paths = re.findall(rf"`((?:{tops})/[\w./-]*)`", DOCS + more)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_variable_in_the_documents_is_read() -> None:
    named = set(re.findall(r"`((?:EXPUNGE|MLFLOW)_[A-Z_]+)`", DOCS))
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    assert "EXPUNGE_HOME" in named
    assert {name for name in named if f'"{name}"' not in code} == set()


def test_every_variable_that_is_read_has_a_row() -> None:
    rows = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    for name in set(re.findall(r'"(EXPUNGE_[A-Z_]+)"', code)):
        assert f"\n| `{name}` |" in rows, name


def test_the_image_in_the_documents_is_the_one_that_is_compiled() -> None:
    assert set(re.findall(r"`(expunge:[^`]+)`", DOCS)) == {IMAGE}


def test_the_example_of_a_policy_is_one(tmp_path: Path) -> None:
    from expunge.policy import load_policy

    page = (ROOT / "docs/reference/policy.md").read_text(encoding="utf-8")
    (example,) = documents.FENCE.findall(page)
    file = tmp_path / "policy.yaml"
    file.write_text(example)
    policy = load_policy(file)
    assert policy.approval
    assert set(yaml.safe_load(example)) == set(
        re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    )


@pytest.mark.parametrize("page", documents.SITE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_an_example_imports_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for example in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        tree = ast.parse(example)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(
                        f"{node.module}.{alias.name}"
                    )


@pytest.mark.parametrize("root", ["components/expunge", "pipelines/expunge_pipelines"])
def test_the_map_has_every_module_and_package(root: str) -> None:
    for path in (ROOT / root).iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert f"`{path.name}`" in CONTRIBUTING or f"`{path.stem}/`" in CONTRIBUTING
        elif path.is_dir() and path.name != "__pycache__":
            assert f"`{path.name}/`" in CONTRIBUTING


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == __version__
    assert cited["references"][0]["url"] in README


@pytest.mark.parametrize("name", STEPS)
def test_the_table_of_ports_is_what_the_components_have(name: str) -> None:
    row = next(line for line in PORTS.splitlines() if line.startswith(f"| `{name}` |"))
    _, takes, gives, parameters = (
        re.findall(r"`(\w+)`", cell) for cell in row.strip("|").split("|")
    )
    spec = STEPS[name].component_spec
    inputs, outputs = spec.inputs or {}, spec.outputs or {}
    artifacts = {key for key, port in inputs.items() if port.type.startswith("system.")}
    assert set(takes) == artifacts
    assert set(parameters) == set(inputs) - artifacts
    assert set(gives) == set(outputs)


def test_every_step_has_a_row_and_no_other() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PORTS, flags=re.MULTILINE) == list(STEPS)
