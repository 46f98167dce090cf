"""Eigenvectors also of matrices that LAPACK's divide and conquer gives up on."""

import pytest
import torch

from expunge.core import eigen


def make_matrix(rank: int, side: int) -> torch.Tensor:
    rows = torch.randn(rank, side, generator=torch.Generator().manual_seed(0)).double()
    return rows.T @ rows


def check(matrix: torch.Tensor) -> None:
    values_X, vectors_XX = eigen.decompose(matrix)
    assert bool((values_X.diff() >= -1e-9).all())
    torch.testing.assert_close((vectors_XX * values_X) @ vectors_XX.T, matrix)
    torch.testing.assert_close(
        vectors_XX.T @ vectors_XX, torch.eye(len(matrix), dtype=torch.float64)
    )


def test_values_ascend_and_the_vectors_give_the_matrix_back() -> None:
    check(make_matrix(30, 20))


def test_what_does_not_converge_is_decomposed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("linalg.eigh: The algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    check(make_matrix(5, 20))
