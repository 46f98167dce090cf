"""What it takes to add a rule, an attack, an architecture, a source, a runner or a command.

Each is added to a copy of the sources by one new file and one line in one table, and then run.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# By what is added: the new file and its text; the table's file; the line above, and the new line.
ADDITIONS = {
    "rule": (
        "components/expunge/core/rules/toy.py",
        """
        from expunge.core.rules import Rule, RuleInputs
        from expunge.core.rules.paths import WeightPath


        def make_paths(inputs: RuleInputs) -> list[WeightPath]:
            def change(strength: float):
                gradient = inputs.terms.gradient
                return {name: (strength * part).float() for name, part in gradient.items()}

            return [WeightPath("toy", 1, lowest=1e-3, highest=1e3, change=change)]


        RULE = Rule(sufficient=0.05, make_paths=make_paths)
        """,
        "components/expunge/core/rules/__init__.py",
        '    "natural": "expunge.core.rules.natural:RULE",',
        '    "toy": "expunge.core.rules.toy:RULE",',
    ),
    "attack": (
        "components/expunge/core/attacks/toy.py",
        """
        def measure(case, seen):
            return seen.measure_forget_accuracy(case.forget)
        """,
        "components/expunge/core/attacks/__init__.py",
        "    for attack in (",
        '        Attack("toy", "model", "forget_test", Tolerance(0.05, 0.05), "A toy."),',
    ),
    "architecture": (
        "components/expunge/models/toy.py",
        """
        from torch import nn


        def build_toy(input_shape, num_classes):
            channels, height, width = input_shape
            return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))
        """,
        "components/expunge/models/__init__.py",
        '    "mlp": "expunge.models.mlp:MLP",',
        '    "toy": "expunge.models.toy:build_toy",',
    ),
    "source": (
        "components/expunge/data/toy.py",
        """
        import numpy as np

        from expunge.data.array_set import write_array_set


        def write_toy(config, folder):
            images_NHWC = np.arange(4, dtype=np.uint8).repeat(16).reshape(4, 4, 4, 1)
            labels_N = np.array([0, 1, 0, 1])
            splits = {name: (images_NHWC, labels_N) for name in config.splits}
            return write_array_set(config, ("a", "b"), splits, folder)
        """,
        "components/expunge/data/sources.py",
        '    "digits": "expunge.data.digits:write_digits",',
        '    "toy": "expunge.data.toy:write_toy",',
    ),
    "runner": (
        "pipelines/expunge_pipelines/runners/toy.py",
        """
        from contextlib import contextmanager


        @contextmanager
        def open_toy(reads):
            from kfp import local

            print("the toy runs", file=__import__("sys").stderr)
            yield local.SubprocessRunner(use_venv=False)
        """,
        "pipelines/expunge_pipelines/runners/base.py",
        '    LOCAL: "expunge_pipelines.runners.local:open_process_runner",',
        '    "toy": "expunge_pipelines.runners.toy:open_toy",',
    ),
    "command": (
        "pipelines/expunge_pipelines/cli/toy.py",
        """
        import click


        @click.command()
        def toy() -> None:
            \"\"\"Say hello.\"\"\"
            click.echo("hello from a toy")
        """,
        "pipelines/expunge_pipelines/cli/__init__.py",
        "COMMANDS = {",
        '    "toy": "expunge_pipelines.cli.toy:toy",',
    ),
}

# Run in the copy. The tests' own helpers make the models: a forget that takes the rule, and a
# validation whose policy blocks on the attack.
USES = {
    "rule": """
        from expunge.config import PerturbConfig
        from expunge.steps.compute_fim import compute_fim
        from expunge.steps.perturb import perturb
        from test_validate import write_model

        write_model(work / "model")
        compute_fim(work / "model", work / "terms", classes=[1])
        config = PerturbConfig((1,), "toy")
        report = perturb(config, work / "model", work / "terms", work / "new", parent="m/1")
        assert report["rule"] == "toy", report["rule"]
        """,
    "attack": """
        from expunge.config import GateConfig
        from expunge.steps.export_onnx import export_onnx
        from expunge.steps.validate import validate
        from test_validate import mask, retrain, write_data, write_model

        write_data(work / "data", (40, 40, 60, 20, 80), "train", "test")
        write_model(work / "good")
        write_model(work / "masked", mask(1), forgotten=(1,))
        for seed in range(4):
            write_model(work / "oracles" / f"{seed}", retrain(seed), forgotten=(1,))
        export_onnx(work / "masked", work / "masked.onnx")
        report = validate(
            GateConfig(block=("toy",)), work / "data", work / "masked", work / "masked.onnx",
            base=work / "good", oracles=work / "oracles", classes=[1],
        )
        (row,) = [check for check in report.to_json()["checks"] if check["name"] == "toy"]
        assert row["blocks"], row
        """,
    "architecture": """
        from expunge.models import build_model, check_architecture

        check_architecture("toy")
        assert sum(p.numel() for p in build_model("toy", (1, 4, 4), 3).parameters()) == 51
        """,
    "source": """
        from expunge.config import PrepareDataConfig
        from expunge.formats.dataset import load_dataset_info
        from expunge.steps.prepare_data import prepare_data

        prepare_data(PrepareDataConfig("toy", work), work / "data")
        assert load_dataset_info(work / "data").class_names == ("a", "b")
        """,
    "runner": """
        from kfp import dsl
        from expunge_pipelines.cli.main import main
        from expunge_pipelines.runners.run_locally import run_locally

        @dsl.component
        def step() -> None:
            pass

        @dsl.pipeline(name="p")
        def pipeline() -> None:
            step()

        assert "step" in run_locally(pipeline, {}, runner="toy").seconds
        """,
    "command": """
        from expunge_pipelines.cli.main import main

        assert main(["toy"]) == 0
        """,
}
SAYS = {"runner": "the toy runs", "command": "hello from a toy"}


def dedent(text: str) -> str:
    lines = text.strip("\n").splitlines()
    return "\n".join(line[8:] for line in lines).rstrip() + "\n"


@pytest.mark.parametrize("kind", ADDITIONS)
def test_one_file_and_one_line_add(kind: str, tmp_path: Path) -> None:
    for folder in ("components", "pipelines"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    file, text, table, above, line = ADDITIONS[kind]
    assert not (tmp_path / file).exists()
    (tmp_path / file).write_text(dedent(text))
    before = (tmp_path / table).read_text()
    assert before.count(above + "\n") == 1
    (tmp_path / table).write_text(before.replace(above + "\n", f"{above}\n{line}\n"))
    work = tmp_path / "work"
    work.mkdir()
    code = f"from pathlib import Path\nwork = Path({str(work)!r})\n" + dedent(USES[kind])
    (tmp_path / "use.py").write_text(code)  # a file, since kfp reads a component's source
    paths = [tmp_path / "components", tmp_path / "pipelines", ROOT / "tests" / "validation"]
    done = subprocess.run(
        [sys.executable, tmp_path / "use.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert SAYS.get(kind, "") in done.stdout + done.stderr
