"""Eigenvectors of matrices that may have many equal eigenvalues."""

import torch
from torch import Tensor


def decompose(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, ascending, and the eigenvectors, as columns.

    LAPACK's divide and conquer gives up on some matrices of low rank. For those the singular value
    decomposition is taken, which is the same thing here, and slower.

    Args:
        matrix: symmetric, float64, without negative eigenvalues.
    """
    try:
        values_X, vectors_XX = torch.linalg.eigh(matrix)
    except RuntimeError:  # PyTorch's LinAlgError is one
        vectors_XX, values_X, _ = torch.linalg.svd(matrix)
        return values_X.flip(0), vectors_XX.flip(1)
    return values_X, vectors_XX
