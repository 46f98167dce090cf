"""The step that registers an oracle as soon as it is trained."""

import shutil
import tempfile
from pathlib import Path
from typing import Any


def keep_oracle(name: str, version: int, model: Path, onnx: Path, report: Path) -> dict[str, Any]:
    """Register folder `model` and file `onnx` as an oracle of version `version` of model `name`.

    `report` is its training's. An oracle that is registered already is not registered again.

    Raises:
        UserError: it was trained on other data or with other settings than the version.
    """
    from expunge import registry
    from expunge.formats.files import read_json
    from expunge.formats.model import CODES, MODEL, ONNX, WEIGHTS, load_model_info
    from expunge.lifecycle import provenance
    from expunge.oracles import check_same_recipe, name_oracle_model

    base = registry.resolve(name, version or None)
    check_same_recipe(registry.read_model_info(base), load_model_info(model))
    tags = {registry.ACCURACY_TAG: str(read_json(report)["test_accuracy"])}
    run_id = registry.attach_run(name, "oracles")
    with tempfile.TemporaryDirectory() as folder:
        # Without a Fisher: nothing is ever forgotten from an oracle.
        for part in (MODEL, WEIGHTS, CODES):
            shutil.copyfile(model / part, Path(folder) / part)
        shutil.copyfile(onnx, Path(folder) / ONNX)
        kept = registry.register(
            run_id, name_oracle_model(name), Path(folder), tags, registry.ORACLE
        )
        provenance.record_version(kept, Path(folder))
    return {"model": kept.name, "version": kept.version, "seed": kept.seed}
