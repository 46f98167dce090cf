"""Compile the pipelines and their components to YAML."""

from pathlib import Path

from expunge.errors import OperationalError


def compile_all(folder: Path) -> list[str]:
    """Write `train.yaml`, `oracles.yaml`, `forget.yaml` and `components/<step>.yaml` into `folder`.

    The same code gives the same bytes. Returns the paths written.

    Raises:
        OperationalError: the folder cannot be written.
    """
    from kfp.compiler import Compiler

    from expunge.ops import STEPS
    from expunge_pipelines.forget import build_forget
    from expunge_pipelines.oracles import build_oracles
    from expunge_pipelines.resources import on_cluster
    from expunge_pipelines.train import build_train

    files = {
        "train": build_train(on_cluster),
        "oracles": build_oracles(on_cluster),
        "forget": build_forget(on_cluster),
    }
    files |= {f"components/{name}": component for name, component in STEPS.items()}
    written = []
    try:
        for name, definition in files.items():
            path = folder / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            Compiler().compile(definition, str(path))
            written.append(str(path))
    except OSError as error:
        raise OperationalError(
            f"{folder} cannot be written ({error}); check its permissions and the disk's space"
        ) from error
    return written
