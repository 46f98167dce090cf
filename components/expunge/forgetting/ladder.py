"""The ladder: which of the rules, in the order of their cost, a model and its data allow."""

from collections.abc import Sequence
from pathlib import Path

from expunge.config import PerturbConfig
from expunge.core.rules import ALIGN, CODES, REPLAY
from expunge.device import best_device
from expunge.forgetting.by_align import can_align
from expunge.forgetting.by_replay import uses_replay
from expunge.formats.model import load_model
from expunge.formats.statistics import load_statistics


def list_rungs(model: Path, dataset: Path | None, classes: Sequence[int]) -> list[str]:
    """Return the rules that can forget `classes` of the model in folder `model`, cheapest first.

    Rule codes always can. Replay needs statistics of the classes, and align training images of the
    classes that stay, in the data set folder `dataset`.
    """
    stored, statistics = load_model(model), load_statistics(model, best_device())
    config = PerturbConfig(tuple(classes))
    rungs = [CODES]
    if uses_replay(config, statistics.gaussians if statistics else None):
        rungs.append(REPLAY)
    if can_align(config, stored, statistics, dataset):
        rungs.append(ALIGN)
    return rungs
