"""What makes torch repeat itself to the bit, for the length of a run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# cuBLAS repeats itself only with a fixed workspace: its documentation, "Results reproducibility"
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def deterministic() -> Iterator[None]:
    """Deterministic algorithms inside, and everything as it was afterwards.

    An operation that has none only warns: a few torchvision architectures use one on a GPU.
    """
    workspace = os.environ.get(CUBLAS)
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filling = memory.fill_uninitialized_memory
    os.environ.setdefault(CUBLAS, ":4096:8")
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False  # it would only cost time: nothing reads it
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        memory.fill_uninitialized_memory = filling
        if workspace is None:
            os.environ.pop(CUBLAS, None)
