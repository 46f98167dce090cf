"""House rules that no linter holds."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for root in ("components", "pipelines") for path in (ROOT / root).rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_keeps_the_rules(path: Path) -> None:
    assert path.stat().st_size < 15_000, "split the file"
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: raise an error instead"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert "weights_only=True" in ast.unparse(node)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("torch.save", "pickle.load", "pickle.loads", "pickle.dump")
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"components", "pipelines"} & {name.split(".")[0] for name in names}


def test_the_source_roots_are_no_packages() -> None:
    assert not list(ROOT.glob("components/__init__.py"))
    assert not list(ROOT.glob("pipelines/__init__.py"))
