"""Compile the pipelines and their components to YAML."""

import ast
import copy
import re
import tempfile
from pathlib import Path
from typing import Any

from expunge.errors import OperationalError
from expunge_pipelines.kubeflow.settings import ClusterSettings

KINDS = ("train", "oracles", "forget")
# A comment of kfp's about an input whose default is a dict.
_DICT_DEFAULT = re.compile(r"(#.*\[Default: )(\{.*\})(\])")


def compile_pipeline(kind: str, file: Path, settings: ClusterSettings) -> dict[str, Any]:
    """Write the pipeline of a kind (`KINDS`) as a cluster takes it.

    The same code and settings give the same bytes. Returns its parameters with their defaults;
    one that is None has to be given.

    Raises:
        OperationalError: the file cannot be written; what was there before is there still.
    """
    from expunge_pipelines.forget import build_forget
    from expunge_pipelines.kubeflow.resources import build_pipeline_config, place_on_cluster
    from expunge_pipelines.oracles import build_oracles
    from expunge_pipelines.train import build_train

    place, config = place_on_cluster(settings), build_pipeline_config(settings)
    builders = {
        "train": lambda: build_train(place, config),
        "oracles": lambda: build_oracles(place, config=config),
        "forget": lambda: build_forget(place, config),
    }
    definition = builders[kind]()
    _write(definition, file)
    inputs = definition.component_spec.inputs or {}
    return {key: spec.default for key, spec in inputs.items()}


def compile_all(folder: Path, settings: ClusterSettings) -> list[str]:
    """Write `train.yaml`, `oracles.yaml`, `forget.yaml` and `components/<step>.yaml` into `folder`.

    Returns the paths written.

    Raises:
        OperationalError: the folder cannot be written.
    """
    from expunge.ops import STEPS

    written = []
    for kind in KINDS:
        file = folder / f"{kind}.yaml"
        compile_pipeline(kind, file, settings)
        written.append(str(file))
    for name, step in STEPS.items():
        file = folder / "components" / f"{name}.yaml"
        component = copy.deepcopy(step)
        if settings.image:
            component.component_spec.implementation.container.image = settings.image
        _write(component, file)
        written.append(str(file))
    return written


def _write(definition: Any, file: Path) -> None:
    """Compile to a file beside and put that in its place, so that none is ever half there."""
    from kfp.compiler import Compiler

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".expunge-") as beside:
            partial = Path(beside) / "compiled.yaml"
            Compiler().compile(definition, str(partial))
            _sort_defaults(partial)
            partial.replace(file)
    except OSError as error:
        raise OperationalError(
            f"{file.parent} cannot be written ({error}); check its permissions and the disk's space"
        ) from error


def _sort_defaults(file: Path) -> None:
    """Sort the keys of the dicts in kfp's comments.

    They come in the order of a protobuf map, another one in each process. The file's digest names
    the version on the cluster, so that the same pipeline would be uploaded anew each time.
    """

    def sort_keys(found: re.Match[str]) -> str:
        value = ast.literal_eval(found[2])
        return f"{found[1]}{dict(sorted(value.items()))}{found[3]}"

    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(_DICT_DEFAULT.sub(sort_keys, line) for line in lines))
