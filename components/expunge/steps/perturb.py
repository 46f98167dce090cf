"""The step that forgets: one change of the weights."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from expunge.class_selection import check_forgettable
from expunge.config import PerturbConfig
from expunge.device import best_device
from expunge.formats.files import replace_non_finite
from expunge.formats.fisher import load_forget_terms
from expunge.formats.model import Codes, ModelInfo, load_model, make_opaque_name, save_model


def perturb(
    config: PerturbConfig, model: Path, fisher: Path, unlearned: Path, *, parent: str
) -> dict[str, Any]:
    """Forget `config.classes` of the model in folder `model` and write the result to `unlearned`.

    `fisher` is the folder that `compute_fim` wrote for these classes, `parent` the NAME/VERSION of
    the model. What is written holds neither the forgotten classes' codes nor their names.

    Raises:
        UserError: a class is unknown, forgotten already, or the last, or its code has no gradient.
    """
    import torch

    from expunge.core.rules.calibrate import calibrate
    from expunge.core.rules.paths import Trial

    stored = load_model(model)
    check_forgettable(stored.info, config.classes)
    device = best_device()
    terms = load_forget_terms(fisher, device)
    module = stored.module.to(device)
    classes_K = stored.codes.classes_K.to(device)
    codes_KCHW = stored.codes.images_KCHW.to(device)
    forget_K = torch.isin(classes_K, torch.tensor(config.classes, device=device))
    since = time.perf_counter()
    choice = calibrate(
        module,
        codes_KCHW,
        classes_K,
        forget_K,
        terms=terms,
        rule=config.rule,
        lambdas=config.lambdas,
        budget=config.budget,
    )
    calibrated = time.perf_counter()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.add_(choice.change[name])
    applied = time.perf_counter()
    # A code that stays would let anybody train the class back in.
    kept_K = ~forget_K.cpu()
    codes = Codes(stored.codes.images_KCHW[kept_K], stored.codes.classes_K[kept_K])
    info = _describe_unlearned(stored.info, config.classes, parent)
    save_model(unlearned, info, module.state_dict(), codes)

    def describe_trial(trial: Trial) -> dict[str, Any]:
        # JSON has no number for infinity, which a trial that broke the model has.
        values: dict[str, Any] = replace_non_finite(dataclasses.asdict(trial))
        return values

    return {
        "classes": sorted(config.classes),
        **describe_trial(choice.trial),
        "sufficient": choice.sufficient,
        "trials": [describe_trial(trial) for trial in choice.trials],
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
