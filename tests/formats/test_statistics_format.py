"""Class statistics come back from disk as they were, and a class that is left out left no byte."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from expunge.core.statistics import ClassStatistics, Gaussian, fit_gaussian
from expunge.formats.files import digest_file
from expunge.formats.statistics import (
    STATISTICS,
    list_statistics_classes,
    load_statistics,
    save_statistics,
)

SHAPE, GRID, RANK = (2, 4, 4), (2, 2, 2), 3


def make_gaussian(index: int) -> Gaussian:
    generator = torch.Generator().manual_seed(index)
    return fit_gaussian(torch.rand(9, *SHAPE, generator=generator) + index, GRID, RANK)


def make_statistics(*classes: int, depths: tuple[int, ...] = ()) -> ClassStatistics:
    return ClassStatistics(
        cut="layer3_1_relu",
        shape=SHAPE,
        grid=GRID,
        gaussians={index: make_gaussian(index) for index in classes},
        depths={index: 1.5 + index / 7 for index in depths},
    )


def list_parts(gaussian: Gaussian) -> list[torch.Tensor]:
    return [gaussian.mean_G, gaussian.factor_RG, gaussian.residual_G]


def test_statistics(tmp_path: Path) -> None:
    written = make_statistics(0, 3, 11, depths=(3,))
    save_statistics(tmp_path / "model", written)
    read = load_statistics(tmp_path / "model", torch.device("cpu"))
    assert read is not None
    assert (read.cut, read.shape, read.grid) == (written.cut, SHAPE, GRID)
    assert read.depths == written.depths
    assert read.gaussians.keys() == written.gaussians.keys()
    for index, own in written.gaussians.items():
        found = read.gaussians[index]
        assert (found.low, found.high) == (own.low, own.high)
        for part, expected in zip(list_parts(found), list_parts(own), strict=True):
            assert part.dtype == torch.bfloat16
            assert torch.equal(part, expected)
    first, again = (
        statistics.draw(3, 5, torch.Generator().manual_seed(0)) for statistics in (written, read)
    )
    assert torch.equal(first, again)


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert load_statistics(tmp_path) is None
    assert list_statistics_classes(tmp_path) == set()


def test_equal_statistics_give_equal_bytes(tmp_path: Path) -> None:
    """Whatever order the classes came in."""
    digests = set()
    for number, order in enumerate([(0, 3, 11), (11, 0, 3), (3, 11, 0)]):
        save_statistics(tmp_path / str(number), make_statistics(*order, depths=order))
        digests.add(digest_file(tmp_path / str(number) / STATISTICS))
    assert len(digests) == 1


def test_nothing_of_a_class_that_is_left_out_is_in_the_file(tmp_path: Path) -> None:
    """The file is that of statistics which never had the class, depth and all."""
    whole = make_statistics(0, 3, 11, depths=(0, 3))
    save_statistics(tmp_path / "whole", whole)
    save_statistics(tmp_path / "left", whole.select((0, 11)))
    save_statistics(tmp_path / "never", make_statistics(0, 11, depths=(0,)))
    before, left, never = (
        (tmp_path / name / STATISTICS).read_bytes() for name in ("whole", "left", "never")
    )
    assert left == never
    gone, stays = whole.gaussians[3], whole.gaussians[11]
    for part in list_parts(gone):
        found = part.view(torch.uint8).numpy().tobytes()
        assert found in before
        assert found not in left
    assert stays.mean_G.view(torch.uint8).numpy().tobytes() in left
    for text in (str(whole.depths[3]), str(gone.high), '"3"', "3.mean"):
        written = json.dumps(text)[1:-1] if '"' in text else text  # JSON in JSON
        assert written.encode() in before
        assert written.encode() not in left
    read = load_statistics(tmp_path / "left")
    assert read is not None
    assert (set(read.gaussians), set(read.depths)) == ({0, 11}, {0})


def test_classes_are_listed_wherever_the_file_names_one(tmp_path: Path) -> None:
    """Also if only a depth is left of it, which no reader would look for."""
    save_statistics(tmp_path, make_statistics(0, 11, depths=(3,)))
    assert list_statistics_classes(tmp_path) == {0, 3, 11}


@pytest.mark.parametrize("classes", [(0,), (0, 3, 11)])
def test_the_file_has_three_tensors_a_class(tmp_path: Path, classes: tuple[int, ...]) -> None:
    save_statistics(tmp_path, make_statistics(*classes))
    with safe_open(tmp_path / STATISTICS, framework="pt") as file:
        shapes = {key: list(file.get_tensor(key).shape) for key in file.keys()}  # noqa: SIM118
        (text,) = file.metadata().values()
    assert shapes == {
        f"{index}.{part}": shape
        for index in classes
        for part, shape in (("mean", [8]), ("factor", [RANK, 8]), ("residual", [8]))
    }
    assert set(json.loads(text)) == {"cut", "shape", "grid", "ranges", "depths"}
