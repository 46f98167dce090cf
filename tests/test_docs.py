"""The documents say what the code has."""

import re
from pathlib import Path

import pytest
from command import list_commands

from expunge.environment import IMAGE
from expunge.ops import STEPS
from expunge_pipelines.cli.request import request
from expunge_pipelines.cli.submit import submit

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = list_commands()
PORTS = (ROOT / "components" / "README.md").read_text()


def test_the_readme_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"^    expunge ([\w-]+)", README, flags=re.MULTILINE))
    assert named == set(COMMANDS)
    words = set(re.findall(r"`(?:expunge )?(?:request )?([\w-]+)", README))
    assert set(request.commands) <= words | set(re.findall(r"    expunge request (\w+)", README))


def test_every_option_in_the_readme_exists() -> None:
    commands = [*COMMANDS.values(), *request.commands.values(), *submit.commands.values()]
    known = {flag for command in commands for p in command.params for flag in p.opts}
    known |= {"--help", "--work", "--env-manager", "--backend-store-uri", "--now"}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", README)) <= known


@pytest.mark.parametrize("command", ["train", "forget"])
def test_the_readme_names_every_option_of_a_pipeline(command: str) -> None:
    flags = {flag for p in COMMANDS[command].params for flag in p.opts if flag[:2] == "--"}
    assert flags <= set(re.findall(r"--[a-z][a-z0-9-]+", README))


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^    |`)make ([\w-]+)", README, flags=re.MULTILINE):
        assert f"\n{target}:" in makefile


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_paths_in_the_readme_exist() -> None:
    tops = "components|pipelines|mlflow_project|docs|tests"
    paths = re.findall(rf"`((?:{tops})/[\w./-]*)`", README)
    assert len(paths) > 3
    for path in paths:
        assert (ROOT / path).exists(), path


def test_every_variable_in_the_readme_is_read() -> None:
    named = set(re.findall(r"`((?:EXPUNGE|MLFLOW)_[A-Z_]+)`", README))
    sources = [*ROOT.glob("components/**/*.py"), *ROOT.glob("pipelines/**/*.py")]
    code = "".join(path.read_text() for path in sources)
    assert "EXPUNGE_HOME" in named
    assert {name for name in named if f'"{name}"' not in code} == set()


def test_the_image_in_the_readme_is_the_one_that_is_compiled() -> None:
    assert re.findall(r"`(expunge:[^`]+)`", README) == [IMAGE]


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
