import subprocess
import sys
from pathlib import Path

from mlflow_store import save_tiny, tiny_model

from expunge.formats.files import digest_file
from expunge.steps.export_onnx import export_onnx

pytest_plugins = ["mlflow_store"]


def test_export_writes_the_file_and_reports_it(tmp_path: Path, tiny_onnx: Path) -> None:
    model = save_tiny(tmp_path / "model", tiny_model())
    report = export_onnx(model, tmp_path / "out" / "onnx")
    path = tmp_path / "out" / "onnx"
    assert report == {"sha256": digest_file(path), "bytes": path.stat().st_size}
    assert path.read_bytes() == tiny_onnx.read_bytes()


def test_the_step_starts_without_mlflow() -> None:
    code = (
        "import sys, expunge.steps.export_onnx, expunge.formats.onnx;"
        "sys.exit(bool({'mlflow', 'torch', 'onnx'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
