import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from mlflow_store import Registrar, make_tiny_statistics, tiny_model

from expunge import registry
from expunge.errors import OperationalError, RefusedError, UserError
from expunge.formats.files import digest_file
from expunge.formats.model import load_model
from expunge.formats.statistics import STATISTICS, save_statistics
from expunge.lifecycle import promotion
from expunge.registry import store as connection

pytest_plugins = ["mlflow_store"]

IMAGES_NHWC = np.random.default_rng(3).integers(0, 256, (3, 4, 4, 1), dtype=np.uint8)


def test_a_version_says_what_it_is(registrar: Registrar) -> None:
    made = registrar("shapes", forgotten=(3,))
    assert (made.name, made.version, made.kind, made.grade) == ("shapes", 1, "forget", "suppressed")
    assert (made.forgotten, made.parent, made.source) == ((3,), None, "digits")
    assert made.aliases == ()
    assert made.uri == "models:/shapes/1"
    assert made.created.endswith("+00:00")
    assert made.tags["expunge.data.test"] == "d1"
    assert made.tags["expunge.run_id"] == made.run_id
    assert "name-3" not in json.dumps(dict(made.tags))


def test_registering_again_returns_the_version_that_is_there(registrar: Registrar) -> None:
    first = registrar("shapes")
    folder = registrar.folder / "model-1"
    again = registry.register(first.run_id, "shapes", folder, {"expunge.gate": "passed"}, "train")
    assert again == first
    assert len(registry.list_versions("shapes")) == 1
    registrar("shapes", seed=1)
    assert [entry.version for entry in registry.list_versions("shapes")] == [2, 1]


def test_the_lineage_is_tagged(registrar: Registrar) -> None:
    base = registrar("shapes")
    made = registrar("shapes", seed=1, forgotten=(0,), parent="shapes/1")
    assert made.parent == "shapes/1"
    weights = "expunge.sha256.weights"
    assert made.tags["expunge.base_weights"] == base.tags[weights] != made.tags[weights]


def test_models_and_resolve(registrar: Registrar) -> None:
    for name, seed in (("shapes", 0), ("birds", 1), ("shapes", 2)):
        registrar(name, seed)
    promotion.promote("shapes", 1, None)
    listed = [(entry.name, entry.version, entry.aliases) for entry in registry.list_models()]
    assert listed == [("birds", 1, ()), ("shapes", 2, ()), ("shapes", 1, ("champion",))]
    assert registry.resolve("shapes").version == 1
    assert registry.resolve("shapes", 2).version == 2
    with pytest.raises(UserError, match=r"no model 'fish' \(known: birds, shapes\)"):
        registry.resolve("fish")
    with pytest.raises(UserError, match="'shapes' has no version 9; use one of 1, 2"):
        registry.resolve("shapes", 9)
    with pytest.raises(UserError, match="'birds' has no champion among its versions 1"):
        registry.resolve("birds")
    with pytest.raises(UserError, match="the model name 'a/b' is not usable"):
        registry.resolve("a/b")


def test_a_version_of_something_else(registrar: Registrar) -> None:
    registrar("shapes")
    foreign = connection.connect().create_model_version("shapes", "file:///nowhere")
    assert int(foreign.version) == 2
    assert [entry.version for entry in registry.list_versions("shapes")] == [1]
    with pytest.raises(UserError, match=r"version 2 of 'shapes' was not registered by expunge"):
        registry.resolve("shapes", 2)
    with pytest.raises(RefusedError, match="was not registered by expunge with a passed gate"):
        promotion.promote("shapes", 2, None)


def test_download_gives_the_model_folder_back(registrar: Registrar, tmp_path: Path) -> None:
    made = registrar("shapes", forgotten=(3,))
    registry.download(made, tmp_path / "copy" / "model")
    copy, original = tmp_path / "copy" / "model", registrar.folder / "model-1"
    assert sorted(path.name for path in copy.iterdir()) == sorted(
        path.name for path in original.iterdir()
    )
    for path in original.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    assert load_model(copy).info == load_model(original).info
    assert [path.name for path in copy.parent.iterdir()] == ["model"]


def test_class_statistics_are_a_file_of_a_version_that_has_them(
    registrar: Registrar, store: Path, tmp_path: Path
) -> None:
    without = registrar("shapes")
    assert "statistics" not in without.digests
    folder = registrar.folder_of(tiny_model(1, forgotten=(3,)))
    save_statistics(folder, make_tiny_statistics(0, 1, 2))
    run_id = registry.attach_run("shapes", "forget")
    made = registry.register(run_id, "shapes", folder, {"expunge.gate": "passed"}, "forget")
    assert made.digests["statistics"] == digest_file(folder / STATISTICS)
    registry.download(made, tmp_path / "copy")
    assert (tmp_path / "copy" / STATISTICS).read_bytes() == (folder / STATISTICS).read_bytes()
    stored = stored_file(store, STATISTICS)
    stored.write_bytes(stored.read_bytes()[:-1] + b"x")
    with pytest.raises(OperationalError, match=r"statistics\.safetensors of models:/shapes/2 is"):
        registry.download(made, tmp_path / "again")


def stored_file(home: Path, name: str) -> Path:
    (path,) = home.glob(f"mlartifacts/shapes/**/{name}")
    return path


def test_download_checks_the_digests(registrar: Registrar, store: Path, tmp_path: Path) -> None:
    made = registrar("shapes")
    weights = stored_file(store, "weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(OperationalError, match=r"weights\.safetensors of models:/shapes/1 is not"):
        registry.download(made, tmp_path / "copy")
    weights.unlink()
    with pytest.raises(OperationalError, match="its SHA-256 is missing"):
        registry.download(made, tmp_path / "copy")
    stored_file(store, "model.json").unlink()
    with pytest.raises(UserError, match=r"models:/shapes/1 holds no model\.json"):
        registry.download(made, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_register_refuses_what_is_incomplete_or_remembers(registrar: Registrar) -> None:
    run_id = registry.attach_run("shapes", "forget")
    folder = registrar.folder_of(tiny_model(forgotten=(3,)))
    with pytest.raises(UserError, match="kind is 'retrain'; expected one of train, forget, oracle"):
        registry.register(run_id, "shapes", folder, {}, "retrain")
    info = json.loads((folder / "model.json").read_text())
    named = {**info, "class_names": ["a", "b", "c", "Eve"]}
    (folder / "model.json").write_text(json.dumps(named))
    with pytest.raises(OperationalError, match="forgot class 3 and still holds its name") as caught:
        registry.register(run_id, "shapes", folder, {}, "forget")
    assert "Eve" not in str(caught.value)
    coded = {**info, "forgotten": [2], "class_names": ["a", "b", "forgotten-2", "d"]}
    (folder / "model.json").write_text(json.dumps(coded))
    with pytest.raises(OperationalError, match="forgot class 2 and still holds its code"):
        registry.register(run_id, "shapes", folder, {}, "forget")
    (folder / "model.json").write_text(json.dumps(info))
    for statistics in (make_tiny_statistics(0, 3), make_tiny_statistics(0, depths={3: 1.5})):
        save_statistics(folder, statistics)
        with pytest.raises(OperationalError, match="forgot class 3 and still holds its statistics"):
            registry.register(run_id, "shapes", folder, {}, "forget")
    (folder / "fim_total.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no fim_total\.safetensors; run the steps"):
        registry.register(run_id, "shapes", folder, {}, "forget")
    assert registry.list_models() == []


def test_a_failure_midway_leaves_no_version(registrar: Registrar, store: Path) -> None:
    run_id = registry.attach_run("shapes", "train")
    folder = registrar.folder_of(tiny_model())
    onnx = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"model\.onnx is no ONNX model; run export_onnx again"):
        registry.register(run_id, "shapes", folder, {}, "train")
    (folder / "model.onnx").write_bytes(onnx)
    (store / "mlartifacts").mkdir()
    (store / "mlartifacts" / "shapes").write_text("a file where the artifacts' folder belongs")
    with pytest.raises(OperationalError, match="could not register a version"):
        registry.register(run_id, "shapes", folder, {}, "train")
    (store / "mlartifacts" / "shapes").unlink()
    with pytest.raises(OperationalError, match=r"exceeds the maximum length|exceeded length limit"):
        registry.register(run_id, "shapes", folder, {"expunge.note": "x" * 200_000}, "train")
    client = connection.connect()
    assert list(client.search_model_versions()) == []
    experiment = client.get_run(run_id).info.experiment_id
    assert list(client.search_logged_models([experiment])) == []
    assert registry.register(run_id, "shapes", folder, {}, "train").version == 1


def test_registered_files_are_those_of_the_folder(registrar: Registrar, store: Path) -> None:
    made = registrar("shapes")
    files = {name: f"{name}.safetensors" for name in ("weights", "codes", "fim_total")}
    files |= {"info": "model.json", "onnx": "model.onnx"}
    assert made.digests == {
        name: digest_file(stored_file(store, file)) for name, file in files.items()
    }


def test_plain_mlflow_clients_load_the_champion(registrar: Registrar, tiny_onnx: Path) -> None:
    import mlflow
    import onnx

    from expunge.formats.onnx import load_session, predict_onnx

    registrar("shapes")
    promotion.promote("shapes", 1, None)
    assert mlflow.onnx.load_model("models:/shapes@champion") == onnx.load(tiny_onnx)
    model = mlflow.pyfunc.load_model("models:/shapes@champion")
    expected = predict_onnx(load_session(tiny_onnx), IMAGES_NHWC, 3)
    np.testing.assert_allclose(model.predict(IMAGES_NHWC)["probabilities"], expected, atol=1e-6)
    (spec,) = model.metadata.signature.inputs.inputs
    assert (spec.type, spec.shape) == (np.dtype("uint8"), (-1, 4, 4, 1))
    requirements = Path(mlflow.pyfunc.get_model_dependencies("models:/shapes@champion"))
    named = {line.partition("=")[0] for line in requirements.read_text().split()}
    assert named == {"mlflow", "numpy", "onnx", "onnxruntime"}


def test_mlflow_serves_the_champion(registrar: Registrar, tiny_onnx: Path) -> None:
    from expunge.formats.onnx import load_session, predict_onnx

    registrar("shapes")
    promotion.promote("shapes", 1, None)
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri = connection.environment.mlflow_uri()
    folder = Path(sys.executable).parent
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/shapes@champion"]
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)],
        env={
            **os.environ,
            "MLFLOW_TRACKING_URI": uri,
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        },
        start_new_session=True,
    )
    try:
        answer = post(f"http://127.0.0.1:{port}/invocations", {"inputs": IMAGES_NHWC.tolist()})
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
    expected = predict_onnx(load_session(tiny_onnx), IMAGES_NHWC, 3)
    np.testing.assert_allclose(answer["predictions"]["probabilities"], expected, atol=1e-5)


def post(url: str, body: object) -> dict:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(240):
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except ConnectionError:
            time.sleep(0.25)
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.25)
    raise TimeoutError("the server did not come up within 60 s")
