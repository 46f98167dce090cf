"""An oracle from its search to a forget that finds it, each trained for real on tiny data."""

import dataclasses
import json
from pathlib import Path

import pytest
from mlflow_store import save_tiny_fisher
from tiny_data import write_tiny

from expunge import registry
from expunge.config import ClaimConfig, TrainConfig
from expunge.errors import RefusedError, UserError
from expunge.formats.files import write_json
from expunge.formats.model import load_model_info
from expunge.oracles import build_oracle_config, compute_recipe_key, derive_oracle_seeds
from expunge.steps.claim_requests import claim_requests
from expunge.steps.find_oracle import find_oracle
from expunge.steps.keep_oracle import keep_oracle
from expunge.steps.load_oracles import load_oracles
from expunge.steps.train import train

pytest_plugins = ["mlflow_store"]

RECIPE = TrainConfig(arch="mlp", epochs=1, batch_size=16, seed=1002, workers=0)


def trained(folder: Path, config: TrainConfig, dataset: Path) -> Path:
    report = train(config, dataset, folder, checkpoints=folder.parent / "checkpoints")
    write_json(folder.with_suffix(".json"), report)
    return folder


def keep(folder: Path, onnx: Path) -> dict[str, object]:
    return keep_oracle("shapes", 1, folder, onnx, folder.with_suffix(".json"))


@pytest.fixture
def base(store: Path, tmp_path: Path, tiny_onnx: Path) -> Path:
    """Return the folder of version 1 of `shapes`, trained on `tmp_path / "data"` with seed 1002."""
    folder = trained(tmp_path / "base", RECIPE, write_tiny(tmp_path / "data"))
    save_tiny_fisher(folder)
    (folder / "model.onnx").write_bytes(tiny_onnx.read_bytes())
    run_id = registry.attach_run("shapes", "train")
    registry.register(run_id, "shapes", folder, {"expunge.gate": "passed"}, "train")
    return folder


def test_an_oracle_is_made_found_and_fetched(base: Path, tmp_path: Path, tiny_onnx: Path) -> None:
    info = load_model_info(base)
    data = tmp_path / "data"
    config = build_oracle_config(info, [3])
    assert not find_oracle(data, "shapes", 1, [3], config.seed)
    oracle = trained(tmp_path / "oracle", config, data)
    assert load_model_info(oracle).forgotten == (3,)
    assert compute_recipe_key(load_model_info(oracle)) == compute_recipe_key(info, [3])
    kept = keep(oracle, tiny_onnx)
    assert kept == {"model": "shapes-oracles", "version": 1, "seed": config.seed}
    assert keep(oracle, tiny_onnx) == kept
    (found,) = registry.list_oracles("shapes", compute_recipe_key(info, [3]))
    report = json.loads(oracle.with_suffix(".json").read_text())
    assert found.test_accuracy == report["test_accuracy"]
    assert find_oracle(data, "shapes", 1, [3], config.seed)
    assert not find_oracle(data, "shapes", 1, [3], config.seed + 1)
    assert not find_oracle(data, "shapes", 1, [2], config.seed)
    assert load_oracles(base, tmp_path / "few", "shapes", [3]) == (1, ["test"], ["train"])
    assert load_oracles(base, tmp_path / "none", "shapes", [2]) == (0, ["test"], ["train"])
    assert list((tmp_path / "few").iterdir()) == list((tmp_path / "none").iterdir()) == []


def test_from_four_on_the_training_images_are_asked_for(
    base: Path, tmp_path: Path, tiny_onnx: Path
) -> None:
    info = load_model_info(base)
    config, seeds = (
        build_oracle_config(info, [3]),
        derive_oracle_seeds(compute_recipe_key(info, [3]), 4),
    )
    assert info.settings["seed"] not in seeds, "that one would start as the base did"
    for seed in seeds:
        if seed == seeds[3]:
            assert load_oracles(base, tmp_path / "three", "shapes", [3]) == (3, ["test"], ["train"])
            with pytest.raises(RefusedError, match=r"needs 4 oracles of 'shapes' .*--classes 3`$"):
                load_oracles(base, tmp_path / "refused", "shapes", [3], "forgotten")
            with pytest.raises(RefusedError, match=r"--classes 3 --base-version 1`$"):
                load_oracles(base, tmp_path / "refused", "shapes", [3], "forgotten", 1)
        config = dataclasses.replace(config, seed=seed)
        keep(trained(tmp_path / f"oracle-{seed}", config, tmp_path / "data"), tiny_onnx)
    found = load_oracles(base, tmp_path / "four", "shapes", [3], "forgotten")
    assert found == (4, ["train", "test"], [])
    for seed in seeds:
        weights = (tmp_path / "four" / f"seed-{seed}" / "weights.safetensors").read_bytes()
        assert weights == (tmp_path / f"oracle-{seed}" / "weights.safetensors").read_bytes()
    assert len(list((tmp_path / "four").iterdir())) == 4


def test_other_data_or_settings_are_refused(base: Path, tmp_path: Path, tiny_onnx: Path) -> None:
    changed = write_tiny(tmp_path / "changed", spoiled=2)
    with pytest.raises(UserError, match="the images of split train of tiny are not those that ver"):
        find_oracle(changed, "shapes", 1, [3], 1001)
    with pytest.raises(UserError, match="without is empty; name the classes that the oracles"):
        find_oracle(tmp_path / "data", "shapes", 1, [], 1001)
    config = dataclasses.replace(build_oracle_config(load_model_info(base), [3]), epochs=2)
    longer = trained(tmp_path / "longer", config, tmp_path / "data")
    with pytest.raises(UserError, match="this is no oracle: settings epochs is 2"):
        keep(longer, tiny_onnx)
    assert registry.list_versions("shapes-oracles") == []


def test_an_oracle_is_not_what_a_forget_starts_from(
    base: Path, tmp_path: Path, tiny_onnx: Path
) -> None:
    config = build_oracle_config(load_model_info(base), [3])
    keep(trained(tmp_path / "oracle", config, tmp_path / "data"), tiny_onnx)
    dry = ClaimConfig("shapes-oracles", "run", dry_run=True, classes=(2,), version=1)
    with pytest.raises(UserError, match=r"is an oracle, .* forget classes of 'shapes'"):
        claim_requests(dry, tmp_path / "model")
