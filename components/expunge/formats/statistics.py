"""Class statistics on disk: `statistics.safetensors` in a model's folder.

Each class has the tensors `<index>.mean`, `<index>.factor` and `<index>.residual`, and nothing else
in the file depends on it but its range and its depth in the metadata. So the file of a version that
forgot a class is the same, to the byte, as one that never had it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from expunge.core.statistics import ClassStatistics

STATISTICS = "statistics.safetensors"
_HOW = "how"  # the one key of a safetensors file's metadata
_PARTS = ("mean", "factor", "residual")


def save_statistics(folder: Path, statistics: ClassStatistics) -> None:
    """Write the statistics; equal ones give equal bytes."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors, ranges = {}, {}
    for index, own in sorted(statistics.gaussians.items()):
        for part, tensor in zip(_PARTS, (own.mean_G, own.factor_RG, own.residual_G), strict=True):
            tensors[f"{index}.{part}"] = tensor.cpu().contiguous()
        ranges[str(index)] = [own.low, own.high]
    how = {
        "cut": statistics.cut,
        "shape": list(statistics.shape),
        "grid": list(statistics.grid),
        "ranges": ranges,
        "depths": {str(index): depth for index, depth in sorted(statistics.depths.items())},
    }
    # safetensors writes its metadata in random order, hence one key with sorted JSON
    save_file(tensors, folder / STATISTICS, metadata={_HOW: json.dumps(how, sort_keys=True)})


def load_statistics(folder: Path, device: torch.device | None = None) -> ClassStatistics | None:
    """Return the statistics of a model's folder, or None where it has none."""
    from safetensors import safe_open

    from expunge.core.statistics import ClassStatistics, Gaussian

    if not (folder / STATISTICS).exists():
        return None
    place = "cpu" if device is None else str(device)
    with safe_open(folder / STATISTICS, framework="pt", device=place) as file:
        how: dict[str, Any] = json.loads(file.metadata()[_HOW])
        gaussians = {
            int(index): Gaussian(
                file.get_tensor(f"{index}.mean"),
                file.get_tensor(f"{index}.factor"),
                file.get_tensor(f"{index}.residual"),
                low,
                high,
            )
            for index, (low, high) in how["ranges"].items()
        }
    return ClassStatistics(
        cut=how["cut"],
        shape=tuple(how["shape"]),
        grid=tuple(how["grid"]),
        gaussians=gaussians,
        depths={int(index): depth for index, depth in how["depths"].items()},
    )


def list_statistics_classes(folder: Path) -> set[int]:
    """Return the classes that a folder's statistics say anything of, without torch."""
    from safetensors import safe_open

    if not (folder / STATISTICS).exists():
        return set()
    with safe_open(folder / STATISTICS, framework="numpy") as file:
        how: dict[str, Any] = json.loads(file.metadata()[_HOW])
        named = {key.partition(".")[0] for key in file.keys()}  # noqa: SIM118
    return {int(index) for index in (*named, *how["ranges"], *how["depths"])}
