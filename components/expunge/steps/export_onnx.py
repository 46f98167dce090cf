"""The step that writes a model as one ONNX file."""

from pathlib import Path
from typing import Any


def export_onnx(model: Path, onnx: Path) -> dict[str, Any]:
    """Export the model in folder `model` to the file `onnx`, and report its digest and size."""
    import expunge.formats.onnx
    from expunge.formats.model import load_model

    digest = expunge.formats.onnx.export_onnx(load_model(model), onnx)
    return {"sha256": digest, "bytes": onnx.stat().st_size}
