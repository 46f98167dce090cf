"""Demonstration on the embedded digits: train, forget a class, promote, export."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from expunge import environment, registry
from expunge.config import TrainConfig
from expunge.errors import OperationalError
from expunge.lifecycle import provenance
from expunge_pipelines.jobs.forget import forget
from expunge_pipelines.jobs.train import train

FORGOTTEN = 3
# 1,438 images are few: 32 a step for 60 epochs at 0.05 are the steps that a network of sigmoid
# units needs for 97 % and for codes that it knows by heart.
RECIPE = TrainConfig(arch="mlp", epochs=60, batch_size=32, learning_rate=0.05)


def run_demo(
    on_start: Callable[[str], None] = lambda _: None, runner: str = "local"
) -> dict[str, Any]:
    """Train on the digits, forget class 3 and promote the result.

    Returns the documents of both jobs, and the path of the unlearned model as ONNX.
    """
    name = _find_free_name()
    trained = train(name, "digits", RECIPE, on_start=on_start, runner=runner)
    forgotten = forget(name, [str(FORGOTTEN)], on_start=on_start, runner=runner)
    onnx = None
    if forgotten["version"]:
        champion = registry.resolve(name)
        with suppress(OSError, OperationalError):  # the promoted version serves without this copy
            copy = registry.export_file(champion, environment.home() / "exports")
            retained = registry.read_model_info(champion).retained
            provenance.record_folder(copy, "onnx", retained, name)
            onnx = str(copy)
    return {
        "model": name,
        "train": trained,
        "forget": forgotten,
        "onnx": onnx,
        "seconds": trained["total_seconds"] + forgotten["total_seconds"],
    }


def _find_free_name() -> str:
    """Return `digits`, or `digits-2` and so on if that is taken.

    A second demonstration needs a fresh model: a class that a model has erased never comes back.
    """
    taken = {version.name for version in registry.list_models()}
    number = 1
    while (name := "digits" if number == 1 else f"digits-{number}") in taken:
        number += 1
    return name
