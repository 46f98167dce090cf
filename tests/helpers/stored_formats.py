"""A model folder and a Fisher, small and with every field set, as the formats' tests want them."""

import json
from pathlib import Path

import torch

from expunge.formats.model import Codes, ModelInfo, save_model
from expunge.models import build_model

SHAPE = (1, 4, 4)
INFO = ModelInfo(
    arch="mlp",
    class_names=("Zoë", "forgotten-1", "dog"),
    input_shape=SHAPE,
    mean=(1 / 3,),
    std=(0.25,),
    source="digits",
    data_digests={"train": "ab", "test": "cd"},
    forgotten=(1,),
    parent="shapes/1",
    settings={"epochs": 3, "nested": {"t_mix": 0.1}},
)


def draw_fisher(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (2, 3, 3, 3), "head.bias": (3,)}
    return {
        name: torch.rand(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def write_model(folder: Path, info: ModelInfo = INFO) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = build_model("mlp", SHAPE, 3).state_dict()
        codes = Codes(torch.rand(2, *SHAPE), torch.tensor([0, 2]))
    save_model(folder, info, state, codes)
    return {**state, "codes": codes.images_KCHW}


def spoil_json(path: Path, change: str) -> None:
    """Turn what expunge wrote into valid JSON of something else."""
    raw = json.loads(path.read_text())
    if change == "list":
        raw = [raw]
    elif change == "missing":
        del raw["source"]
    else:
        raw["input_shape"] = [3, 8] if change == "shape" else None
    path.write_text(json.dumps(raw))
