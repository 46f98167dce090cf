import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from expunge.errors import UserError
from expunge.formats.model import Codes, ModelInfo, StoredModel, save_model
from expunge.formats.onnx import export_onnx, load_session, parity, predict_onnx
from expunge.models import build_model

NAMES = ("ant", "bee", "cat", "forgotten-3", "eel")


def stored_model(arch: str, shape: tuple[int, int, int]) -> StoredModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build_model(arch, shape, len(NAMES)).eval()
        # statistics that are not 0 and 1, so that folding BatchNorm has something to fold
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.uniform_(-0.1, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        codes = Codes(torch.rand(4, *shape), torch.tensor([0, 1, 2, 4]))
    mean, std = (0.4, 0.5, 0.6)[: shape[0]], (0.2, 0.25, 0.3)[: shape[0]]
    info = ModelInfo(arch, NAMES, shape, mean, std, "digits", {"test": "d"}, (3,))
    return StoredModel(info, module, codes)


def raw_images(count: int, shape: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = shape
    generator = np.random.default_rng(1)
    return generator.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def slow_probabilities(stored: StoredModel, images_NHWC: np.ndarray) -> np.ndarray:
    """One image at a time, with the preprocessing written out."""
    rows = []
    for image_HWC in images_NHWC:
        channels = [
            (torch.tensor(image_HWC[:, :, c]).float() / 255 - stored.info.mean[c])
            / stored.info.std[c]
            for c in range(image_HWC.shape[2])
        ]
        with torch.no_grad():
            rows.append(stored.module(torch.stack(channels)[None]).softmax(-1)[0].numpy())
    return np.stack(rows)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[StoredModel, Path, str]:
    stored = stored_model("resnet20", (3, 8, 8))
    path = tmp_path_factory.mktemp("export") / "deep" / "model.onnx"
    return stored, path, export_onnx(stored, path)


def test_the_graph_takes_raw_pixels_and_gives_probabilities(
    exported: tuple[StoredModel, Path, str],
) -> None:
    stored, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    session = load_session(path)
    (images,), (probabilities,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == (
        "images",
        "tensor(uint8)",
        ["batch", 8, 8, 3],
    )
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", 5]
    images_NHWC = raw_images(5, (3, 8, 8))
    got = predict_onnx(session, images_NHWC, batch=2)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_probabilities(stored, images_NHWC), atol=1e-5)
    np.testing.assert_allclose(got.sum(1), 1, atol=1e-6)
    assert np.ptp(got, axis=0).max() > 0.01  # the images matter


def test_any_batch_size_gives_the_same_rows(exported: tuple[StoredModel, Path, str]) -> None:
    session = load_session(exported[1])
    images_NHWC = raw_images(7, (3, 8, 8))
    together = predict_onnx(session, images_NHWC, batch=7)
    alone = predict_onnx(session, images_NHWC, batch=1)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert predict_onnx(session, images_NHWC[:0], batch=7).shape == (0, 5)


def test_two_processes_write_the_same_bytes_and_say_nothing(
    exported: tuple[StoredModel, Path, str], tmp_path: Path
) -> None:
    stored, path, digest = exported
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    save_model(tmp_path / "model", stored.info, stored.module.state_dict(), stored.codes)
    code = (
        "import sys; from pathlib import Path; from expunge.steps.export_onnx import export_onnx; "
        "report = export_onnx(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    other = tmp_path / "other.onnx"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model"), str(other)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
    assert other.read_bytes() == path.read_bytes()


def test_the_file_names_no_path_and_no_forgotten_class(tmp_path: Path) -> None:
    stored = stored_model("mlp", (1, 4, 4))
    leaky = dataclasses.replace(
        stored,
        info=dataclasses.replace(stored.info, class_names=("ant", "bee", "cat", "Eve", "eel")),
    )
    path = tmp_path / "model.onnx"
    export_onnx(leaky, path)
    content = path.read_bytes()
    for secret in (b"Eve", b"stack_trace", b"site-packages", b".py", str(Path.home()).encode()):
        assert secret not in content
    model = onnx.load(path)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["expunge.class_names"]) == list(NAMES)
    assert metadata["expunge.arch"] == "mlp"
    assert metadata["expunge.format_version"] == "1"
    assert "uint8" in metadata["expunge.input"]
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("arch", "shape"), [("mlp", (1, 4, 4)), ("resnet18-cifar", (1, 8, 8))])
def test_parity_of_gray_images(arch: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    check_parity(*export(arch, shape, tmp_path))


def test_parity_of_colour_images(exported: tuple[StoredModel, Path, str]) -> None:
    check_parity(*exported[:2])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["swin_t", "vit_b_16", "resnext50_32x4d"])
def test_parity_of_large_models(arch: str, tmp_path: Path) -> None:
    check_parity(*export(arch, (3, 32, 32), tmp_path))


def export(arch: str, shape: tuple[int, int, int], folder: Path) -> tuple[StoredModel, Path]:
    stored, path = stored_model(arch, shape), folder / "model.onnx"
    export_onnx(stored, path)
    return stored, path


def check_parity(stored: StoredModel, path: Path) -> None:
    for count, batch in ((1, 1), (7, 4)):
        images = raw_images(count, stored.info.input_shape)
        found = parity(stored, path, np.array_split(images, -(-count // batch)))
        assert len(found.predictions_N) == count
        assert found.max_abs_difference < 1e-5
        assert found.equal_argmax


def test_parity_sees_other_weights(exported: tuple[StoredModel, Path, str]) -> None:
    stored = stored_model("resnet20", (3, 8, 8))
    with torch.no_grad():
        head = stored.module.get_parameter("head.weight")
        head.copy_(-head)
    found = parity(stored, exported[1], [raw_images(6, (3, 8, 8))])
    assert found.max_abs_difference > 0.01
    assert not found.equal_argmax


def test_parity_takes_nan_for_a_difference(exported: tuple[StoredModel, Path, str]) -> None:
    stored = stored_model("resnet20", (3, 8, 8))
    with torch.no_grad():
        stored.module.get_parameter("head.bias").fill_(torch.nan)
    found = parity(stored, exported[1], [raw_images(2, (3, 8, 8))])
    assert (found.max_abs_difference, found.equal_argmax) == (np.inf, False)


def test_a_model_beyond_one_file_is_refused(tmp_path: Path) -> None:
    stored = stored_model("mlp", (1, 4, 4))
    huge = torch.nn.Linear(30_000, 20_000, device="meta")
    with pytest.raises(UserError, match=r"take 2\.4 GB and one ONNX file holds at most 2\.1 GB"):
        export_onnx(dataclasses.replace(stored, module=huge), tmp_path / "model.onnx")


def test_files_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.onnx does not exist"):
        load_session(tmp_path / "absent.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"broken\.onnx is no ONNX model that runs here"):
        load_session(tmp_path / "broken.onnx")


def test_misuse(exported: tuple[StoredModel, Path, str]) -> None:
    stored, path, _ = exported
    session = load_session(path, threads=1)
    with pytest.raises(ValueError, match="images are float64; raw pixels in uint8"):
        predict_onnx(session, np.zeros((1, 8, 8, 3)), 1)
    with pytest.raises(ValueError, match="batch is 0; at least 1"):
        predict_onnx(session, raw_images(1, (3, 8, 8)), 0)
    with pytest.raises(ValueError, match="parity of no images"):
        parity(stored, path, [raw_images(0, (3, 8, 8))])
