"""Sessions of a training: everything that `Session` holds, built from the config and the data."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from expunge.config import AFTERWARDS, TrainConfig
from expunge.core.codes import draw_codes
from expunge.core.epoch import Inputs, derive_seed
from expunge.core.precision import choose_precision
from expunge.data.batches import open_split
from expunge.device import few_threads
from expunge.formats.dataset import DatasetInfo
from expunge.formats.pretrained import (
    SUFFIXES,
    load_exactly,
    load_pretrained,
    model_state,
    pretrained_state,
    state_digest,
)
from expunge.models import build_model
from expunge.training.session import Session
from expunge.training.start import check_start, open_start

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # accelerate's names


logger = logging.getLogger(__name__)


@contextmanager
def open_session(config: TrainConfig, info: DatasetInfo, dataset: Path) -> Iterator[Session]:
    """Yield a session with everything on its device.

    torch's generators and accelerate's state are restored afterwards.

    Raises:
        UserError: precision, architecture or weights do not go together with the data or device.
    """
    on_cpu = not torch.cuda.is_available()
    device = torch.device("cpu" if on_cpu else "cuda")
    precision = choose_precision(config.precision, device)
    accelerator = Accelerator(mixed_precision=MIXED[precision], cpu=on_cpu)
    try:
        device = accelerator.device
        with ExitStack() as settings:
            settings.enter_context(torch.random.fork_rng(devices=[] if on_cpu else [device]))
            module, start = _initialise_model(config, info)
            # Before the first step, and for its whole length: sums depend on the number of threads.
            settings.enter_context(few_threads(module, config.batch_size))
            module = _share_statistics(module, accelerator)
            optimizer = torch.optim.SGD(
                module.parameters(),
                lr=config.learning_rate,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
            model, optimizer = accelerator.prepare(module, optimizer)
            # Not accelerate's data loaders: each process takes its share of the same draws itself.
            opened = partial(open_split, dataset, info, device=device, workers=config.workers)
            yield Session(
                config=config,
                info=info,
                recipe=_build_recipe(config, info, start, precision, device),
                accelerator=accelerator,
                precision=precision,
                model=model,
                module=accelerator.unwrap_model(model),
                optimizer=optimizer,
                inputs=_draw_inputs(config, info, device),
                train_split=opened("train", without=config.without),
                test_split=opened("test"),
            )
    finally:
        accelerator.end_training()
        # accelerate keeps its settings for the process; another training may need others
        AcceleratorState._reset_state(reset_partial_state=True)


def _initialise_model(config: TrainConfig, info: DatasetInfo) -> tuple[nn.Module, dict[str, str]]:
    """Return the model before its first step, and what stands for its start in the recipe."""
    # Also where weights are loaded below: a head of another number of classes starts anew.
    torch.manual_seed(derive_seed(config.seed, "weights"))
    classes = len(info.class_names)
    module = build_model(config.arch, info.input_shape, classes)
    if config.weights:
        state = pretrained_state(config.arch, config.weights)
        load_pretrained(module, state, classes)
        # torchvision's name is kept beside the digest, for whoever reads the recipe.
        name = "" if config.weights.endswith(SUFFIXES) else f"{config.weights} "
        return module, {"weights": f"{name}sha256:{state_digest(state)}"}
    if config.init_from:
        with open_start(config.init_from) as source:
            check_start(source, config)
            state = model_state(config.arch, source)
        load_exactly(module, state)
        return module, {"init_from": f"sha256:{state_digest(state)}"}
    return module, {}


def _share_statistics(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return the model; on GPUs its BatchNorm takes the statistics of the whole batch."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if accelerator.num_processes == 1 or not norms:
        return module
    if accelerator.device.type != "cuda":
        logger.warning(
            "torch has no BatchNorm across processes on a CPU: each process uses the statistics of "
            "its own share of a batch, and the first one's running statistics are kept"
        )
        return module
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    return convert(module)


def _draw_inputs(config: TrainConfig, info: DatasetInfo, device: torch.device) -> Inputs:
    classes = len(info.class_names)
    retained = [index for index in range(classes) if index not in config.without]
    # On the CPU, since a GPU's generator draws other numbers from the same seed.
    generator = torch.Generator().manual_seed(config.seed)
    codes_KCHW = draw_codes(retained, classes, info.input_shape, generator)
    return Inputs(
        mean_C=torch.tensor(info.mean, device=device),
        std_C=torch.tensor(info.std, device=device),
        codes_KCHW=codes_KCHW.to(device),
        classes_K=torch.tensor(retained, device=device),
    )


def _build_recipe(
    config: TrainConfig,
    info: DatasetInfo,
    start: dict[str, str],
    precision: str,
    device: torch.device,
) -> dict[str, Any]:
    """Return everything that the weights depend on.

    Pretrained weights stand in it by their digest: a path says nothing of its content. A single
    node is left out, so that recipes without the setting keep their key.
    """
    settings = {**config.to_json(), "without": sorted(config.without), **start}
    settings = {key: value for key, value in settings.items() if key not in AFTERWARDS}
    if config.nodes == 1:
        del settings["nodes"]
    return {
        "config": {**settings, "precision": precision},
        "device": device.type,
        "data": {split: part.digest for split, part in info.splits.items()},
        "mean": list(info.mean),
        "std": list(info.std),
    }
