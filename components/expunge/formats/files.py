"""Every format on disk, one save/load pair each: safetensors and JSON, never pickle.

A data set is a folder with `dataset.json` and, for each split, either `<split>.safetensors`
(`images_NHWC` uint8, `labels_N` int64) or `<split>.json` (relative paths and labels of image files
beside it). A model is a folder with `model.json`, `weights.safetensors` and `codes.safetensors`;
`fim_total.safetensors` joins it when it is registered. torch is imported where it is needed only:
steps that move files around start without it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from expunge.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from expunge.core.fisher import Fisher, ForgetTerms

DATASET, MODEL = "dataset.json", "model.json"
WEIGHTS, CODES, FISHER, ONNX = (
    "weights.safetensors",
    "codes.safetensors",
    "fim_total.safetensors",
    "model.onnx",
)
_HOW = "how"  # the one key of a safetensors file's metadata


@dataclass(frozen=True)
class SplitInfo:
    """`digest` is the SHA-256 of the images and labels in their order; `counts` is by class."""

    images: int
    digest: str
    counts: tuple[int, ...]


@dataclass(frozen=True)
class DatasetInfo:
    """`dataset.json`. `input_shape` is (C, H, W); `mean`, `std`: by channel, of pixels / 255."""

    source: str
    class_names: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    storage: str  # "arrays" or "files"
    splits: Mapping[str, SplitInfo]


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
    """What stands where a forgotten class's name was: its index, which says nothing of anyone."""
    return f"forgotten-{index}"


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all, with sorted keys so that digests are stable."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")
    partial.replace(path)


def replace_non_finite(value: Any) -> Any:
    """The value with None for every number that JSON has none for, at any depth."""
    if isinstance(value, dict):
        return {key: replace_non_finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> Any:
    """Read a JSON file; a missing or broken one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected a file written by expunge") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it anew") from error


@contextmanager
def _described(path: Path) -> Iterator[None]:
    """Valid JSON that is not what expunge writes under this name, such as another tool's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not as expunge writes it ({type(error).__name__}: {error}); "
            "expected a file of this version of expunge"
        ) from error


def digest_file(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_dataset_info(folder: Path, info: DatasetInfo) -> None:
    """Write `dataset.json`, last of a data set's files, so that its presence says 'complete'."""
    write_json(folder / DATASET, asdict(info))


def load_dataset_info(folder: Path) -> DatasetInfo:
    """Read `dataset.json`; one that says something else is a `UserError`."""
    raw = read_json(folder / DATASET)
    with _described(folder / DATASET):
        channels, height, width = raw["input_shape"]
        return DatasetInfo(
            source=raw["source"],
            class_names=tuple(raw["class_names"]),
            input_shape=(channels, height, width),
            mean=tuple(raw["mean"]),
            std=tuple(raw["std"]),
            storage=raw["storage"],
            splits={
                name: SplitInfo(split["images"], split["digest"], tuple(split["counts"]))
                for name, split in raw["splits"].items()
            },
        )


def save_arrays(folder: Path, split: str, images_NHWC: np.ndarray, labels_N: np.ndarray) -> None:
    """Write a split that fits into memory: uint8 images and int64 labels."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "images_NHWC": np.ascontiguousarray(images_NHWC, dtype=np.uint8),
        "labels_N": np.ascontiguousarray(labels_N, dtype=np.int64),
    }
    save_file(arrays, folder / f"{split}.safetensors")


def load_arrays(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images_NHWC and labels_N that `save_arrays` wrote."""
    from safetensors.numpy import load_file

    arrays = load_file(folder / f"{split}.safetensors")
    return arrays["images_NHWC"], arrays["labels_N"]


def load_model_info(folder: Path) -> ModelInfo:
    """Read `model.json` alone, without torch; one that says something else is a `UserError`."""
    raw = read_json(folder / MODEL)
    with _described(folder / MODEL):
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
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    save_file(weights, folder / WEIGHTS)
    pair = {"codes_KCHW": codes.images_KCHW, "classes_K": codes.classes_K}
    save_file({key: value.cpu().contiguous() for key, value in pair.items()}, folder / CODES)
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
    """The codes of a model folder; a model without any cannot forget by this method."""
    from safetensors.torch import load_file

    if not (folder / CODES).exists():
        raise UserError(
            f"{folder.name} holds no {CODES}: the model was not trained with mnemonic codes; "
            "give it some with `expunge train NAME --init-from MODEL_URI`"
        )
    pair = load_file(folder / CODES)
    return Codes(pair["codes_KCHW"], pair["classes_K"])


def save_fisher(folder: Path, total: Fisher, provenance: Mapping[str, str]) -> None:
    """Write the sum over classes of g_c ** 2, float64; `provenance` says how it was computed.

    Equal inputs give equal bytes: safetensors writes its metadata in random order, hence one key.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in total.items()}
    save_file(tensors, folder / FISHER, metadata=_metadata(provenance))


def load_fisher(folder: Path) -> tuple[Fisher, dict[str, str]]:
    """The Fisher total of `save_fisher` and its provenance."""
    from safetensors import safe_open

    with safe_open(folder / FISHER, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _described_as(file.metadata())


def _metadata(values: Mapping[str, Any]) -> dict[str, str]:
    return {_HOW: json.dumps(dict(values), sort_keys=True)}


def _described_as(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """What `_metadata` wrote; nothing where a file has none of it."""
    values: dict[str, Any] = json.loads((metadata or {}).get(_HOW, "{}"))
    return values


_TERMS = ("forget", "retain", "gradient")


def save_forget_terms(folder: Path, terms: ForgetTerms) -> None:
    """Write what both rules need as `forget`, `retain` and `gradient.safetensors`, float64."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    how = _metadata({"direct": terms.direct, "lost": terms.lost})
    for kind in _TERMS:
        tensors: dict[str, Tensor] = getattr(terms, kind)
        rows = {name: value.cpu().contiguous() for name, value in tensors.items()}
        save_file(rows, folder / f"{kind}.safetensors", metadata=how)


def load_forget_terms(folder: Path, device: torch.device) -> ForgetTerms:
    """The terms of `save_forget_terms`, on the device."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from expunge.core.fisher import ForgetTerms

    with safe_open(folder / "forget.safetensors", framework="pt") as file:
        how = _described_as(file.metadata())
    forget, retain, gradient = (
        load_file(folder / f"{kind}.safetensors", device=str(device)) for kind in _TERMS
    )
    return ForgetTerms(forget, retain, gradient, **how)
