"""Class statistics at the end of a training, and the depths of its classes where that is cheap."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from expunge.core.epoch import derive_seed, normalise
from expunge.core.heads import read_head
from expunge.core.rules import depths as depth_search
from expunge.core.rules import replay
from expunge.core.rules.objective import EVALUATIONS
from expunge.core.stages import Stage, UntraceableError, find_stage, name_family
from expunge.core.statistics import (
    IMAGES,
    ClassStatistics,
    Layout,
    fit_gaussian,
    plan_layout,
)
from expunge.formats.statistics import STATISTICS, save_statistics
from expunge.training.session import Session

# The search for the depths may cost this share of the training. Both are counted in arithmetic and
# not in seconds, so that the same training always gives the same file.
DEPTHS_SHARE = 0.1
BATCH = 128  # images in a forward pass

logger = logging.getLogger(__name__)


def write_statistics(session: Session, folder: Path) -> dict[str, Any]:
    """Measure the statistics of every class that takes part, write them, and report.

    Where there is no room for them, or no last stage, the report says why and nothing is written.

    Returns:
        kept: whether there are any; reason: why not; stage, shape, grid, rank, bytes; depths by
        class.
    """
    config = session.config
    # of an earlier attempt with other settings
    (folder / STATISTICS).unlink(missing_ok=True)
    if config.statistics == 0:
        return {"kept": False, "reason": "none are asked for"}
    module = session.module.eval()
    example_NCHW = session.inputs.codes_KCHW[:2]
    classes = [int(index) for index in session.inputs.classes_K]
    limit = int(config.statistics * sum(p.numel() * p.element_size() for p in module.parameters()))

    def plan(shape: tuple[int, ...]) -> Layout | None:
        return plan_layout(shape, len(classes), limit)

    try:
        stage = find_stage(
            module,
            example_NCHW,
            len(session.info.class_names),
            name=config.stage,
            fits=lambda shape: plan(shape) is not None,
        )
    except UntraceableError as error:
        logger.warning("no class statistics are kept, so replay cannot be used: %s", error)
        return {"kept": False, "reason": str(error)}
    layout = cast(Layout, plan(stage.shape))  # there is one, or the stage would not fit
    statistics = _measure(session, stage, layout, classes)
    if _wants_depths(session, stage, example_NCHW):
        statistics = _find_depths(session, stage, statistics)
    save_statistics(folder, statistics)
    return {
        "kept": True,
        "stage": stage.cut.name,
        "shape": list(stage.shape),
        "grid": list(layout.grid),
        "rank": statistics.rank,
        "bytes": statistics.count_bytes(),
        "depths": {str(index): depth for index, depth in statistics.depths.items()},
    }


def _measure(session: Session, stage: Stage, layout: Layout, classes: list[int]) -> ClassStatistics:
    gaussians = {
        index: fit_gaussian(
            _enter_class(session, stage, index, 0, IMAGES), layout.grid, layout.rank
        )
        for index in classes
    }
    return ClassStatistics(stage.cut.name, stage.shape, layout.grid, gaussians)


def _enter_class(session: Session, stage: Stage, index: int, start: int, count: int) -> Tensor:
    """Return what enters the stage for images of a class, in a seeded order, not augmented."""
    rows_N = (session.train_split.labels_N == index).nonzero().flatten().cpu()
    generator = torch.Generator().manual_seed(
        derive_seed(session.config.seed, f"statistics-{index}")
    )
    rows_N = rows_N[torch.randperm(len(rows_N), generator=generator)]
    # images apart from those of the Gaussian, where there are enough
    chosen_N = rows_N[start : start + count] if len(rows_N) > start else rows_N[:count]
    inputs = session.inputs
    return stage.enter_all(
        normalise(session.train_split.take(part_N), inputs.mean_C, inputs.std_C)
        for part_N in torch.split(chosen_N, BATCH)
    )


def _wants_depths(session: Session, stage: Stage, example_NCHW: Tensor) -> bool:
    """Return whether the depths are searched: by the config, or by what it costs."""
    config = session.config
    if name_family(stage) == "vectors":
        return False  # such a stage is trained anew, and goes to no depth
    if config.depths != "auto":
        return config.depths == "always"
    whole, upper = (
        _count_operations(part, given)
        for part, given in (
            (session.module, example_NCHW),
            (stage.upper, stage.enter(example_NCHW)),
        )
    )
    classes = len(session.inputs.classes_K)
    draws = replay.FORGET_DRAWS + min(replay.RETAIN_DRAWS * (classes - 1), replay.MOST_RETAINED)
    search = classes * depth_search.DEPTH_FITS * EVALUATIONS * draws * upper
    training = config.epochs * len(session.train_split.labels_N) * whole
    return search <= DEPTHS_SHARE * training


def _count_operations(module: torch.nn.Module, given: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(given.detach())
    return int(counter.get_total_flops())


def _find_depths(session: Session, stage: Stage, statistics: ClassStatistics) -> ClassStatistics:
    """Return the statistics with the depth of each class that one was found for."""
    classes = list(statistics.gaussians)
    head = read_head(session.module, len(session.info.class_names))
    depths = {}
    for index in classes:
        task = replay.Task((index,), tuple(other for other in classes if other != index))
        entering = _enter_class(session, stage, index, IMAGES, depth_search.DEPTH_IMAGES)
        codes = session.inputs.codes_KCHW, session.inputs.classes_K
        made = replay.Replay(session.module, stage, statistics, task, codes)
        found = depth_search.find_depth(made, entering, head)
        if found.sufficient:
            depths[index] = found.depth
    return replace(statistics, depths=depths)
