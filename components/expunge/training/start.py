"""The start of a training: a model of ours, a weights file, or torchvision's weights."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from expunge import registry
from expunge.config import TrainConfig
from expunge.errors import UserError
from expunge.formats.model import MODEL, load_model_info


@contextmanager
def open_start(source: str) -> Iterator[Path]:
    """Yield the model folder or weights file that `init_from` names.

    A registered version is fetched, and removed at the end of the block.
    """
    if not source.startswith(registry.REGISTERED):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory() as folder:
        fetched = Path(folder) / "model"
        registry.download(registry.resolve_uri(source), fetched)
        yield fetched


def check_start(source: Path, config: TrainConfig) -> None:
    """Refuse a model that remembers a class which this training leaves out.

    The class would come in with the weights. A bare weights file cannot be asked.

    Raises:
        UserError: with the classes.
    """
    if not (source / MODEL).exists():
        return
    remembered = sorted(set(config.without) - set(load_model_info(source).forgotten))
    if remembered:
        raise UserError(
            f"init_from {config.init_from} remembers classes {remembered}, which this training "
            "leaves out; begin with a model that has forgotten them"
        )


def copy_start(config: TrainConfig, folder: Path, torch_home: Path) -> TrainConfig:
    """Copy what a training begins with to a volume, and return the recipe that begins there.

    The pods have no registry, no network and no other files. A model or a file of the user's
    becomes `start` in `folder`; a recipe names it by its digest, so the recipe stays the same.
    torchvision's weights keep their name, and go where its cache is looked for: `torch_home`.

    Raises:
        UserError: the file does not exist.
    """
    if config.init_from:
        with open_start(config.init_from) as source:
            return replace(config, init_from=_copy_weights(source, folder))
    if config.weights:
        import torch

        from expunge.formats.pretrained import SUFFIXES, pretrained_state

        if config.weights.endswith(SUFFIXES):
            return replace(config, weights=_copy_weights(Path(config.weights), folder))
        # Called for what it leaves in the cache, where that is not filled yet.
        pretrained_state(config.arch, config.weights)
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        shutil.copytree(cache, torch_home / "hub" / "checkpoints")
    return config


def _copy_weights(source: Path, folder: Path) -> str:
    target = folder / f"start{source.suffix}"
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copyfile(source, target)
    else:
        raise UserError(f"the weights {source} to begin with do not exist; check the path")
    return str(target)
