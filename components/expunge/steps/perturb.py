"""The step that forgets: one change of the weights."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from expunge.class_selection import check_forgettable
from expunge.config import PerturbConfig
from expunge.core.rules import ALIGN, CODES
from expunge.errors import UserError
from expunge.formats.model import Codes, ModelInfo, load_model, make_opaque_name, save_model


def perturb(
    config: PerturbConfig,
    model: Path,
    fisher: Path,
    unlearned: Path,
    *,
    parent: str,
    dataset: Path | None = None,
) -> dict[str, Any]:
    """Forget `config.classes` of the model in folder `model` and write the result to `unlearned`.

    `fisher` is the folder that `compute_fim` wrote for these classes, `parent` the NAME/VERSION of
    the model, `dataset` a folder with training images, by which replay finds the depth of a class
    that none was kept for, and on which rule align repairs the retained classes. What is written
    holds neither the forgotten classes' codes nor their statistics nor their names.

    Raises:
        UserError: a class is unknown, forgotten already, or the last; its code has no gradient;
            rule replay is asked for and the model has no statistics; or rule align is and there
            are no training images.
    """
    import torch

    from expunge.device import best_device
    from expunge.forgetting.by_align import forget_by_align
    from expunge.forgetting.by_replay import forget_by_replay, uses_replay
    from expunge.forgetting.codes import forget_by_codes
    from expunge.forgetting.ladder import list_rungs
    from expunge.formats.statistics import load_statistics, save_statistics

    stored = load_model(model)
    check_forgettable(stored.info, config.classes)
    if config.rung:
        rule = list_rungs(model, dataset, config.classes)[config.rung - 1]
        # the rules by the codes read no images, and refuse some that are named
        images = "" if rule == CODES else config.forget_data
        config = dataclasses.replace(config, rule=rule, rung=0, forget_data=images)
    statistics = load_statistics(model, best_device())
    since = time.perf_counter()
    if config.rule == ALIGN:
        forgetting = forget_by_align(config, stored, statistics, dataset)
    elif uses_replay(config, statistics.gaussians if statistics else None):
        if statistics is None:
            raise UserError(
                f"rule {config.rule} needs class statistics, and this version has none; train a "
                "version with --statistics above 0, or take rule auto"
            )
        forgetting = forget_by_replay(config, stored, statistics, dataset)
    else:
        forgetting = forget_by_codes(config, stored, fisher)
    calibrated = time.perf_counter()
    with torch.no_grad():
        # running statistics too, which the tensors of the state are as the parameters are
        for name, value in stored.module.state_dict().items():
            if name in forgetting.change:
                value.add_(forgetting.change[name])
    applied = time.perf_counter()
    # A code that stays would let anybody train the class back in.
    kept_K = ~torch.isin(stored.codes.classes_K, torch.tensor(config.classes))
    codes = Codes(stored.codes.images_KCHW[kept_K], stored.codes.classes_K[kept_K])
    info = _describe_unlearned(stored.info, config.classes, parent)
    if statistics is not None:
        kept = [index for index in statistics.gaussians if index not in config.classes]
        save_statistics(unlearned, statistics.select(kept))
    save_model(unlearned, info, stored.module.state_dict(), codes)
    return {
        "classes": sorted(config.classes),
        **forgetting.report,
        "calibration_seconds": calibrated - since,
        "perturbation_seconds": applied - calibrated,
    }


def _describe_unlearned(info: ModelInfo, classes: tuple[int, ...], parent: str) -> ModelInfo:
    """Return the description of the model without the classes: their names become opaque ids."""
    forgotten = tuple(sorted({*info.forgotten, *classes}))
    names = tuple(
        make_opaque_name(index) if index in forgotten else name
        for index, name in enumerate(info.class_names)
    )
    # Whoever has the seed can draw the forgotten codes again.
    settings = {key: value for key, value in info.settings.items() if key != "seed"}
    return dataclasses.replace(
        info, class_names=names, forgotten=forgotten, parent=parent, settings=settings
    )
