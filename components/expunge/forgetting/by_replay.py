"""Forgetting by replay: the last stage is trained anew, or refitted to the depth of each class."""

import dataclasses
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from expunge import environment
from expunge.config import PerturbConfig, PrepareDataConfig
from expunge.core.epoch import normalise
from expunge.core.heads import read_head
from expunge.core.rules import replay
from expunge.core.rules.anew import train_anew
from expunge.core.rules.depths import DEPTH_IMAGES, DepthTrial, find_depth, is_gone
from expunge.core.rules.paths import Change
from expunge.core.rules.replay_head import compute_change, finish
from expunge.core.stages import Stage, UntraceableError, name_family, open_stage
from expunge.core.statistics import ClassStatistics
from expunge.data.batches import open_split
from expunge.data.sources import find_loader
from expunge.device import best_device, deterministic, few_threads
from expunge.errors import UserError
from expunge.forgetting.outcome import Forgetting
from expunge.formats.dataset import DATASET, DatasetInfo, load_dataset_info, save_dataset_info
from expunge.formats.model import ModelInfo, StoredModel

logger = logging.getLogger(__name__)

# How the last stage was changed.
ANEW, REFITTED = "trained anew", "refitted"
# Where a depth came from.
KEPT, IMAGES, USUAL = "kept at training", "images of the class", "usual for such a model"
SPLIT = "train"  # never the test images: the gate judges by them
BATCH = 128
JOINT_FITS = 4  # of several classes at once, at most
JOINT_RATIO = 1.2  # by which the depth of a class grows that is still named


@dataclass(frozen=True)
class Depth:
    """The depth of a class, where it came from, and what was tried to find it."""

    depth: float
    origin: str
    sufficient: bool = True
    trials: tuple[DepthTrial, ...] = ()
    fit: replay.Fit | None = None
    entering: Tensor | None = None  # the images' activations


def forget_by_replay(
    config: PerturbConfig,
    stored: StoredModel,
    statistics: ClassStatistics,
    dataset: Path | None = None,
) -> Forgetting:
    """Return the change of the model's last stage, which draws from its statistics make.

    Where vectors enter the stage, it is trained anew and nothing else is needed. Else it is
    refitted, to a depth of each class. One that was kept at training is taken. For a class without
    one, images of it choose the depth and nothing else: those of `config.forget_data`, or those in
    the training split of folder `dataset`. Without any, it is the usual one.

    Raises:
        UserError: the model has no statistics of a class, no such stage, or the images do not fit.
    """
    absent = [index for index in config.classes if index not in statistics.gaussians]
    if absent:
        raise UserError(
            f"the model has no statistics of classes {absent}, which rule replay needs; it has "
            f"those of {sorted(statistics.gaussians)}. Take rule paper or natural, or train a "
            "version anew"
        )
    with deterministic(), torch.random.fork_rng(), _refuse_other_models():
        model = _Opened.open(stored, statistics)
        work: dict[str, Any] = {
            "rule": replay.NAME,
            "sign": None,
            "strength": None,
            "lambdas": [],
            "trials": [],
            "stage": statistics.cut,
            "rank": statistics.rank,
        }
        if name_family(model.stage) == "vectors":
            if config.forget_data:
                logger.warning("%s is not read: the last stage is trained anew", config.forget_data)
            change, own = _train_anew(model, config.classes)
        else:
            change, own = _refit(config, model, dataset)
    return Forgetting(change, work | own)


def _train_anew(model: "_Opened", classes: tuple[int, ...]) -> tuple[Change, dict[str, Any]]:
    """Return the change to a stage that never saw the classes, and its part of the report."""
    task = model.make_task(classes)
    with few_threads(model.module, BATCH):
        trained = train_anew(model.module, model.stage, model.statistics, task, model.codes)
    change = compute_change(model.module, trained.parameters, trained.head)
    return change, {"way": ANEW, "distance": trained.loss, "sufficient": True}


def _refit(
    config: PerturbConfig, model: "_Opened", dataset: Path | None
) -> tuple[Change, dict[str, Any]]:
    """Return the change that moves each class by its depth, and its part of the report."""
    made = model.make_replay(config.classes)
    depths = _choose_depths(config, model, made, dataset)
    fit, depths = _fit_together(model, made, depths)
    outcome = finish(made, fit)
    return outcome.change, {
        "way": REFITTED,
        "depths": {str(index): _describe_depth(depth) for index, depth in depths.items()},
        "forget_gap": outcome.forget_loss,
        "retain_gap": outcome.retain_loss,
        "sufficient": all(depth.sufficient for depth in depths.values()),
    }


@contextmanager
def _refuse_other_models() -> Iterator[None]:
    """Refuse what replay cannot refit, with what to do instead."""
    try:
        yield
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"rule replay cannot refit this model ({error}); take rule paper or natural, or train "
            "a version without the class"
        ) from error


def _describe_depth(depth: Depth) -> dict[str, Any]:
    return {
        "depth": depth.depth,
        "from": depth.origin,
        "trials": [dataclasses.asdict(trial) for trial in depth.trials],
    }


@dataclass(frozen=True)
class _Opened:
    """A model on its device, split at its stage."""

    info: ModelInfo
    module: torch.nn.Module
    stage: Stage
    statistics: ClassStatistics
    codes_KCHW: Tensor
    classes_K: Tensor

    @classmethod
    def open(cls, stored: StoredModel, statistics: ClassStatistics) -> "_Opened":
        device = best_device()
        module = stored.module.to(device)
        codes_KCHW, classes_K = (
            part.to(device) for part in (stored.codes.images_KCHW, stored.codes.classes_K)
        )
        try:
            stage = open_stage(module, statistics.cut, len(stored.info.class_names), codes_KCHW[:2])
        except UntraceableError as error:
            raise UserError(f"rule replay cannot split this model: {error}") from error
        return cls(stored.info, module, stage, statistics, codes_KCHW, classes_K)

    @property
    def codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The mnemonic codes, and the class of each."""
        return self.codes_KCHW, self.classes_K

    def make_task(self, classes: tuple[int, ...]) -> replay.Task:
        retain = tuple(index for index in self.statistics.gaussians if index not in classes)
        return replay.Task(tuple(classes), retain)

    def make_replay(self, classes: tuple[int, ...]) -> replay.Replay:
        task = self.make_task(classes)
        return replay.Replay(self.module, self.stage, self.statistics, task, self.codes)


def _choose_depths(
    config: PerturbConfig, model: _Opened, made: replay.Replay, dataset: Path | None
) -> dict[int, Depth]:
    """Return the depth of each class; `made` is of all of them together."""
    known = {} if config.forget_data else dict(model.statistics.depths)
    found = {index: Depth(known[index], KEPT) for index in config.classes if index in known}
    missing = [index for index in config.classes if index not in found]
    if not missing:
        return found
    with _open_images(config, model.info, dataset) as folder:
        for index in missing:
            entering = None if folder is None else _enter_class(model, folder, index)
            if entering is None and config.forget_data:
                raise UserError(
                    f"{config.forget_data} has no training image of class {index} "
                    f"({model.info.class_names[index]}), which its depth could be found by"
                )
            if entering is None:
                found[index] = Depth(made.settings.depth, USUAL)
                continue
            # of a class that is alone, what all of them need is there already
            own = made if made.task.forget == (index,) else model.make_replay((index,))
            found[index] = _find_depth(model, own, entering)
    return found


def _find_depth(model: _Opened, made: replay.Replay, entering: Tensor) -> Depth:
    head = read_head(model.module, len(model.info.class_names))
    search = find_depth(made, entering, head)
    return Depth(
        search.depth, IMAGES, search.sufficient, search.trials, search.fit, entering=entering
    )


def _fit_together(
    model: _Opened, made: replay.Replay, depths: dict[int, Depth]
) -> tuple[replay.Fit, dict[int, Depth]]:
    """Refit the stage for all classes at once, deeper for those that are still named.

    A class that is forgotten beside others can need more than it did alone. Images tell which one
    does; where there are none, the depths stay.
    """
    (first, *others) = depths.values()
    # the search for the depth of a single class has fitted it already
    if not others and first.fit is not None:
        return first.fit, depths
    head = read_head(model.module, len(model.info.class_names))
    fits_left = JOINT_FITS
    while True:
        fit = made.fit({index: depth.depth for index, depth in depths.items()})
        fits_left -= 1
        named = {
            index: depth
            for index, depth in depths.items()
            if depth.entering is not None and not is_gone(made, fit, depth.entering, head, index)
        }
        for index, depth in named.items():
            deeper = depth.depth * JOINT_RATIO if fits_left else depth.depth
            change = dataclasses.replace(depth, depth=deeper, sufficient=bool(fits_left))
            depths = depths | {index: change}
        if not named or not fits_left:
            return fit, depths


@contextmanager
def _open_images(
    config: PerturbConfig, info: ModelInfo, dataset: Path | None
) -> Iterator[Path | None]:
    """Yield the data set folder with images of the classes; None where there is none."""
    if not config.forget_data:
        yield dataset if dataset is not None and (dataset / DATASET).is_file() else None
        return
    wanted = PrepareDataConfig(
        config.forget_data, environment.data_root(), info.image_side, (SPLIT,)
    )
    with tempfile.TemporaryDirectory() as folder:
        made = find_loader(wanted.source)(wanted, Path(folder))
        _check_fit(made, info)
        save_dataset_info(Path(folder), made)
        yield Path(folder)


def _check_fit(data: DatasetInfo, info: ModelInfo) -> None:
    if data.input_shape != info.input_shape or len(data.class_names) != len(info.class_names):
        raise UserError(
            f"images of {data.source} are {data.input_shape} (C, H, W) in {len(data.class_names)} "
            f"classes, and the model takes {info.input_shape} in {len(info.class_names)}; give "
            "images that it could have been trained on"
        )


def _enter_class(model: _Opened, folder: Path, index: int) -> Tensor | None:
    """Return what enters the stage for training images of a class; None where there are none."""
    data = load_dataset_info(folder)
    if SPLIT not in data.splits or not data.splits[SPLIT].counts[index]:
        return None
    _check_fit(data, model.info)
    device = model.codes_KCHW.device
    split = open_split(folder, data, SPLIT, torch.device("cpu"))
    rows_N = (split.labels_N == index).nonzero().flatten()
    generator = torch.Generator().manual_seed(index)
    rows_N = rows_N[torch.randperm(len(rows_N), generator=generator)][:DEPTH_IMAGES]
    scale = [torch.tensor(row, device=device) for row in (model.info.mean, model.info.std)]
    return model.stage.enter_all(
        normalise(split.take(part_N).to(device), *scale) for part_N in torch.split(rows_N, BATCH)
    )


def uses_replay(config: PerturbConfig, statistics: Mapping[int, Any] | None) -> bool:
    """Return whether a config leads to replay: by name, or by "auto" where there are statistics."""
    if config.rule == replay.NAME:
        return True
    known = statistics or {}
    return config.rule == "auto" and all(index in known for index in config.classes)
