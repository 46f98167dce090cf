"""Model on disk: a folder with `model.json`, `weights.safetensors` and `codes.safetensors`.

`fim_total.safetensors` joins them when the model is registered (see `expunge.formats.fisher`), and
`model.onnx` as a file of its own. torch is imported where it is needed only: steps that move models
around start without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import UserError
from expunge.formats.files import read_json, refuse_other_json, write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL = "model.json"
WEIGHTS, CODES, ONNX = "weights.safetensors", "codes.safetensors", "model.onnx"


@dataclass(frozen=True)
class ModelInfo:
    """`model.json`. A forgotten class's name is replaced by an opaque id in `class_names`."""

    arch: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    data_digests: Mapping[str, str]  # by split
    forgotten: tuple[int, ...] = ()
    parent: str | None = None  # "NAME/VERSION" of the version that this one was made from
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def retained(self) -> tuple[int, ...]:
        """The class indices that the model is to keep, in rising order."""
        return tuple(i for i in range(len(self.class_names)) if i not in self.forgotten)

    @property
    def image_side(self) -> int:
        """The side of its images in pixels, for `prepare_data`; 0 where they are not square."""
        _, height, width = self.input_shape
        return height if height == width else 0


@dataclass(frozen=True)
class Codes:
    """Codes_KCHW and the class index of each, rising; of the retained classes only."""

    images_KCHW: Tensor
    classes_K: Tensor


@dataclass(frozen=True)
class StoredModel:
    """A model as it lies on disk, on the CPU and in eval mode."""

    info: ModelInfo
    module: nn.Module
    codes: Codes


def make_opaque_name(index: int) -> str:
    """Return what replaces a forgotten class's name: its index, which says nothing of anyone."""
    return f"forgotten-{index}"


def load_model_info(folder: Path) -> ModelInfo:
    """Read `model.json` alone, without torch; one that says something else is a `UserError`."""
    raw = read_json(folder / MODEL)
    with refuse_other_json(folder / MODEL):
        channels, height, width = raw["input_shape"]
        return ModelInfo(
            arch=raw["arch"],
            class_names=tuple(raw["class_names"]),
            input_shape=(channels, height, width),
            mean=tuple(raw["mean"]),
            std=tuple(raw["std"]),
            source=raw["source"],
            data_digests=raw["data_digests"],
            forgotten=tuple(raw["forgotten"]),
            parent=raw["parent"],
            settings=raw["settings"],
        )


def save_model(folder: Path, info: ModelInfo, state: Mapping[str, Tensor], codes: Codes) -> None:
    """Write a model folder; equal inputs give equal bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # safetensors takes neither channels-last tensors nor two that share memory, as tied weights do
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(weights, folder / WEIGHTS)
    pair = {"codes_KCHW": codes.images_KCHW, "classes_K": codes.classes_K}
    save_file({key: value.cpu().contiguous() for key, value in pair.items()}, folder / CODES)
    # last, so that its presence says that the folder is complete
    write_json(folder / MODEL, asdict(info))


def load_model(folder: Path) -> StoredModel:
    """Build the architecture that `model.json` names and load the weights and codes beside it."""
    from safetensors.torch import load_file

    from expunge.models import build_model

    info = load_model_info(folder)
    module = build_model(info.arch, info.input_shape, len(info.class_names))
    module.load_state_dict(load_file(folder / WEIGHTS))
    return StoredModel(info, module.eval(), load_codes(folder))


def load_codes(folder: Path) -> Codes:
    """Read the codes of a model folder; without any, a model cannot forget by this method.

    Raises:
        UserError: there are none.
    """
    from safetensors.torch import load_file

    if not (folder / CODES).exists():
        raise UserError(
            f"{folder.name} holds no {CODES}: the model was not trained with mnemonic codes; "
            "give it some with `expunge train NAME --init-from MODEL_URI`"
        )
    pair = load_file(folder / CODES)
    return Codes(pair["codes_KCHW"], pair["classes_K"])
