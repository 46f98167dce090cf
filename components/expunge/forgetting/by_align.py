"""Forgetting by repair: what replay left, disturbed and repaired on retained training images."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from expunge.config import PerturbConfig, TrainConfig
from expunge.core.epoch import Inputs, batch_bounds, derive_seed, draw_epoch, prepare_images
from expunge.core.heads import find_head_name
from expunge.core.rules import ALIGN, AUTO, align
from expunge.core.rules.paths import Change
from expunge.core.stages import Stage, UntraceableError, find_stage, open_stage
from expunge.core.statistics import ClassStatistics
from expunge.data.batches import Share, Split, choose_augmentation, open_split
from expunge.device import best_device, deterministic, few_threads
from expunge.errors import UserError
from expunge.forgetting.by_replay import SPLIT, forget_by_replay, uses_replay
from expunge.forgetting.outcome import Forgetting
from expunge.formats.dataset import DATASET, DatasetInfo, load_dataset_info
from expunge.formats.model import ModelInfo, StoredModel

SEED = 0  # of the noise and the batches: the same model and data always give the same result
REMEDY = "take rule auto, or train a version with `expunge train NAME --without CLASSES`"


def forget_by_align(
    config: PerturbConfig,
    stored: StoredModel,
    statistics: ClassStatistics | None,
    dataset: Path | None,
) -> Forgetting:
    """Return the change that a repair on retained images leads to.

    It starts from what replay makes of the model, where there are statistics of the classes, and
    else from the model itself. Its images are those of the retained classes in the training split
    of folder `dataset`. They go through as in the training, with the retained codes among them:
    `core.rules.align.SHARE` of what went through there. Only the last stage and the head change.

    Raises:
        UserError: there is no training split, or it lacks a retained class; or the model has no
            last stage.
    """
    images = _RetainedImages.open(config, stored, dataset)
    known = uses_replay(replace(config, rule=AUTO), statistics.gaussians if statistics else None)
    with deterministic(), torch.random.fork_rng():
        first = None
        if statistics is not None and known:
            first = forget_by_replay(config, stored, statistics, dataset)
        module = stored.module.to(best_device())
        student = copy.deepcopy(module)
        _add_change(student, first.change if first else {})
        cut = statistics.cut if statistics else ""
        stage = _split(module, stored, cut)
        repair = align.Repair(
            low=tuple(sorted({*stored.info.forgotten, *config.classes})),
            retain=images.classes,
            steps=images.plan.steps,
            seed=derive_seed(SEED, "noise"),  # apart from that of anybody's weights
        )
        with few_threads(module, images.plan.batch):
            loss = align.align(
                _open_part(module, stage, stored.info),
                _open_part(student, _split(student, stored, stage.cut.name), stored.info),
                images.enter(stage),
                repair,
            )
    return Forgetting(
        _subtract(student, module),
        {
            **(_describe_start(first.report) if first else _describe_none()),
            "rule": ALIGN,
            "stage": stage.cut.name,
            "start": first.report["rule"] if first else "the version itself",
            "repair_steps": repair.steps,
            "repair_batch": images.plan.batch,
            "repair_share": images.count_passes() / (images.epochs * images.count),
            "repair_loss": loss,
        },
    )


def can_align(
    config: PerturbConfig,
    stored: StoredModel,
    statistics: ClassStatistics | None,
    dataset: Path | None,
) -> bool:
    """Return whether `forget_by_align` has the images and the stage that it needs."""
    try:
        _check_images(stored.info, _list_retained(config, stored.info), dataset)
        _split(stored.module, stored, statistics.cut if statistics else "")
    except UserError:
        return False
    return True


def _list_retained(config: PerturbConfig, info: ModelInfo) -> tuple[int, ...]:
    return tuple(index for index in info.retained if index not in config.classes)


def _describe_start(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return what replay reported, less what is left of its loss, which the repair has changed."""
    return {key: value for key, value in report.items() if not key.endswith("_gap")}


def _describe_none() -> dict[str, Any]:
    return {"sign": None, "strength": None, "lambdas": [], "trials": []}


@dataclass(frozen=True)
class _RetainedImages:
    """Training images of the retained classes, and how the training made batches of them."""

    data: DatasetInfo
    split: Split
    classes: tuple[int, ...]
    inputs: Inputs
    epochs: int
    t_mix: float
    augment: str

    @classmethod
    def open(
        cls, config: PerturbConfig, stored: StoredModel, dataset: Path | None
    ) -> "_RetainedImages":
        """Open the split, after everything that can be wrong with it was looked at."""
        device, info = best_device(), stored.info
        retain = _list_retained(config, info)
        data = _check_images(info, retain, dataset)
        gone = [index for index in range(len(info.class_names)) if index not in retain]
        kept_K = torch.isin(stored.codes.classes_K, torch.tensor(retain))
        return cls(
            data=data,
            split=open_split(cast(Path, dataset), data, SPLIT, device, without=gone),
            classes=retain,
            inputs=Inputs(
                mean_C=torch.tensor(info.mean, device=device),
                std_C=torch.tensor(info.std, device=device),
                codes_KCHW=stored.codes.images_KCHW[kept_K].to(device),
                classes_K=stored.codes.classes_K[kept_K].to(device),
            ),
            # a model from elsewhere may not say how it was trained
            epochs=int(info.settings.get("epochs", TrainConfig.epochs)),
            t_mix=float(info.settings.get("t_mix", TrainConfig.t_mix)),
            augment=str(info.settings.get("augment", TrainConfig.augment)),
        )

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.split.labels_N)

    @property
    def plan(self) -> align.Plan:
        """How long a repair on them takes."""
        return align.plan_steps(self.epochs, self.count)

    @property
    def _bounds(self) -> list[tuple[int, int]]:
        return batch_bounds(self.count, self.plan.batch)

    def count_passes(self) -> int:
        """Return how many images go through in all steps."""
        whole, rest = divmod(self.plan.steps, len(self._bounds))
        return whole * self.count + (self._bounds[rest - 1][1] if rest else 0)

    def enter(self, stage: Stage) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what enters the stage, and the labels_N, in batches drawn as for a training."""
        augment = choose_augmentation(self.augment, self.data)
        left, epoch = self.plan.steps, 0
        while left:
            generator = torch.Generator().manual_seed(derive_seed(SEED, ALIGN, epoch))
            draws = draw_epoch(self.count, self.t_mix, generator)
            bounds = self._bounds[:left]
            for batch in self.split.train_batches(draws, bounds, augment, Share()):
                with torch.no_grad():
                    entering = stage.enter(prepare_images(batch, self.inputs))
                yield entering, batch.labels_N
            left, epoch = left - len(bounds), epoch + 1


def _check_images(info: ModelInfo, retain: tuple[int, ...], dataset: Path | None) -> DatasetInfo:
    """Return the description of a data set that has training images of every retained class."""
    there = dataset is not None and (dataset / DATASET).is_file()
    data = load_dataset_info(dataset) if there and dataset else None
    if data is None or SPLIT not in data.splits:
        source = data.source if data else info.source
        raise UserError(
            f"rule align repairs the model on training images of the retained classes, and "
            f"{source} gives no split {SPLIT!r}; {REMEDY}"
        )
    if data.input_shape != info.input_shape or len(data.class_names) != len(info.class_names):
        raise UserError(
            f"images of {data.source} are {data.input_shape} (C, H, W) in {len(data.class_names)} "
            f"classes, and the model takes {info.input_shape} in {len(info.class_names)}; rule "
            f"align needs images that it was trained on: {REMEDY}"
        )
    empty = [index for index in retain if not data.splits[SPLIT].counts[index]]
    if empty:
        raise UserError(
            f"{data.source} has no training image of classes {empty}, which are to stay, and rule "
            f"align would lose them; {REMEDY}"
        )
    return data


def _split(module: nn.Module, stored: StoredModel, cut: str) -> Stage:
    """Return the model split at the cut of this name; at its last stage where there is none."""
    classes = len(stored.info.class_names)
    device = next(module.parameters()).device
    example_NCHW = stored.codes.images_KCHW[:2].to(device)
    try:
        if cut:
            return open_stage(module, cut, classes, example_NCHW)
        named = str(stored.info.settings.get("stage", TrainConfig.stage))
        return find_stage(module, example_NCHW, classes, name=named)
    except UntraceableError as error:
        raise UserError(f"rule align cannot split this model: {error}; {REMEDY}") from error


def _open_part(module: nn.Module, stage: Stage, info: ModelInfo) -> align.Part:
    head = module.get_submodule(find_head_name(module, len(info.class_names)))
    return align.Part(stage.upper, cast(nn.Linear, head))


def _add_change(module: nn.Module, change: Change) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in change:
                parameter.add_(change[name])


def _subtract(after: nn.Module, before: nn.Module) -> dict[str, Tensor]:
    """Return what differs, by name; of the running statistics too, but not how many they are of."""
    old, new = (_list_values(module) for module in (before, after))
    return {
        name: value - old[name]
        for name, value in new.items()
        if value.is_floating_point() and not torch.equal(value, old[name])
    }


def _list_values(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, each once: of tied weights the first name alone."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: value.detach() for name, value in named}
