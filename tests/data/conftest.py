"""Small image data sets on disk, with pixels that differ between files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.config import PrepareDataConfig


def _write_images(
    root: Path,
    *,
    classes: Sequence[str] = ("cat", "dog"),
    splits: Sequence[str] = ("train", "test"),
    count: int = 3,
    size: tuple[int, int] = (6, 6),
    mode: str = "RGB",
    suffix: str = ".png",
) -> Path:
    rng = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                shape = size[::-1] if mode == "L" else (*size[::-1], len(mode))
                pixels = rng.integers(0, 256, shape, dtype=np.uint8)
                image = Image.fromarray(pixels)
                image.save(root / split / name / f"{index}{suffix}")
    return root


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """Write PNGs as <root>/<split>/<class>/<index>.png; `size` is (width, height)."""
    return _write_images


@pytest.fixture
def folder_config(tmp_path: Path) -> Callable[..., PrepareDataConfig]:
    def build(path: object, **settings: object) -> PrepareDataConfig:
        return PrepareDataConfig(f"folder:{path}", tmp_path / "root", **settings)  # type: ignore[arg-type]

    return build
