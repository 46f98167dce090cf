"""Device of a step, and results that repeat to the bit on it.

The core is given a device; the steps choose it here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Per-code gradients held at once. On a CPU one backward pass a code is faster than `vmap(grad)`
# (ResNet-18, 40 codes at 64 px: 1.2 s against 3.5 s); a GPU would idle between passes so small.
CPU_CHUNK = 1
GPU_CHUNK = 8
# cuBLAS repeats itself only with a fixed workspace: its documentation, "Results reproducibility"
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"


def best_device() -> torch.device:
    """Return the first GPU where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gradient_chunk(device: torch.device) -> int:
    """Return how many per-code gradients `core.fisher` takes at once on this device."""
    return GPU_CHUNK if device.type == "cuda" else CPU_CHUNK


@contextmanager
def deterministic() -> Iterator[None]:
    """Use deterministic algorithms inside, and restore everything afterwards.

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


def count_gpus() -> int:
    """Return how many GPUs this process may use; 0 where it trains on the CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
