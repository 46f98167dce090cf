"""House rules that no linter holds."""

import ast
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for root in ("components", "pipelines") for path in (ROOT / root).rglob("*.py")
)
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
# What torch.load raises for a file that holds more than tensors: to be caught, not to be read.
PICKLE_ERRORS = {"pickle.UnpicklingError"}
LARGEST = 15_000  # bytes, a file that asks to be split
HELP_SECONDS = 0.5


def imported(node: ast.AST) -> list[str]:
    """List the top-level packages that an import statement names; relative ones are our own."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
        names = [node.module or ""]
    else:
        names = []
    return [name.split(".")[0] for name in names]


def broken_rules(source: str) -> list[str]:
    """List what is wrong with a source file, a line each."""
    found = []
    tree = ast.parse(source)
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    harmless = any(error in used for error in PICKLE_ERRORS) and not any(
        name.startswith("pickle.") for name in used - PICKLE_ERRORS
    )
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            found.append(f"line {node.lineno}: an assert, where an error should be raised")
        for name in imported(node):
            if name in PICKLES and not (harmless and ast.unparse(node) == "import pickle"):
                found.append(f"line {node.lineno}: imports {name}; safetensors and JSON instead")
            if name in {"components", "pipelines"}:
                found.append(f"line {node.lineno}: imports {name}, which is a source root")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            options = {option.arg: ast.unparse(option.value) for option in node.keywords}
            if called == "torch.save":
                found.append(f"line {node.lineno}: torch.save writes a pickle")
            if called == "torch.load" and options.get("weights_only") != "True":
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if options.get("allow_pickle") == "True":
                found.append(f"line {node.lineno}: {called} reads a pickle")
    return found


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 50


@pytest.mark.parametrize(
    "source",
    [
        "assert x",
        "def f():\n    import pickle",
        "from pickle import loads",
        "import pickle as p",
        "import pickle\npickle.UnpicklingError\npickle.loads(data)",
        "import pipelines.expunge_pipelines",
        "from components.expunge import core",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(model, path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_a_broken_rule_is_found(source: str) -> None:
    assert len(broken_rules(source)) == 1


def test_what_keeps_the_rules_is_left_alone() -> None:
    loads = "torch.load(p, weights_only=True)"
    for source in (
        f"from .pickle import a\nimport expunge_pipelines\n{loads}",
        f"import pickle\ntry:\n    {loads}\nexcept pickle.UnpicklingError:\n    pass",
    ):
        assert broken_rules(source) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_keeps_the_rules(path: Path) -> None:
    assert path.stat().st_size <= LARGEST, "split the file"
    assert broken_rules(path.read_text(encoding="utf-8")) == []


def test_the_source_roots_are_no_packages() -> None:
    assert not [
        root for root in ("components", "pipelines") if (ROOT / root / "__init__.py").exists()
    ]


def test_every_folder_of_sources_is_a_package() -> None:
    """Or its modules are missing from the wheel's packages."""
    folders = {path.parent for path in SOURCES}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_the_commands_module_starts_without_the_heavy_packages() -> None:
    code = (
        "import sys, expunge_pipelines.cli.main;"
        "print(*{'torch', 'torchvision', 'mlflow', 'kfp', 'onnx', 'boto3', 'sklearn', 'numpy'}"
        " & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert found.split() == []


def test_help_is_there_at_once() -> None:
    """Computing time, not the clock's, which other work on the machine stretches."""
    command = Path(sys.executable).with_name("expunge")
    seconds = []
    for _ in range(3):
        before = os.times()
        shown = subprocess.run([command, "--help"], check=True, capture_output=True, text=True)
        after = os.times()
        seconds.append(
            after.children_user + after.children_system
            - before.children_user - before.children_system
        )  # fmt: skip
        assert "forget" in shown.stdout
    assert statistics.median(seconds) < HELP_SECONDS, seconds
