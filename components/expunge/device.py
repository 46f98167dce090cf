"""Device of a step, and results that repeat to the bit on it.

The core is given a device; the steps choose it here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# Per-code gradients held at once. On a CPU one backward pass a code is faster than `vmap(grad)`
# (ResNet-18, 40 codes at 64 px: 1.2 s against 3.5 s); a GPU would idle between passes so small.
CPU_CHUNK = 1
GPU_CHUNK = 8
# cuBLAS repeats itself only with a fixed workspace: its documentation, "Results reproducibility"
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# Products in a step's forward pass up to which a network of matrices alone computes on one thread.
# On two cores, batch 128, medians: 64-1000-10 0.8 ms on one thread and 1.2 ms on two; 784-1000-10
# 10 ms and 30 ms while others compute as well, since each short operation waits for every thread.
ONE_THREAD = 2**27


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


def is_small(module: nn.Module, batch_size: int) -> bool:
    """Return whether a CPU is better off with one thread for it."""
    convolves = any(isinstance(m, nn.modules.conv._ConvNd) for m in module.modules())
    return not convolves and batch_size * sum(p.numel() for p in module.parameters()) <= ONE_THREAD


@contextmanager
def few_threads(module: nn.Module, batch_size: int) -> Iterator[None]:
    """Use one thread inside where that is faster for the module; sums depend on the number."""
    threads = torch.get_num_threads()
    if not torch.cuda.is_available() and is_small(module, batch_size):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def count_gpus() -> int:
    """Return how many GPUs this process may use; 0 where it trains on the CPU."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
