"""Which device a step runs on. The core is given one; the steps choose it here."""

import torch

# Per-code gradients held at once. On a CPU one backward pass a code is faster than `vmap(grad)`
# (ResNet-18, 40 codes at 64 px: 1.2 s against 3.5 s); a GPU would idle between passes so small.
CPU_CHUNK = 1
GPU_CHUNK = 8


def best_device() -> torch.device:
    """The first GPU where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gradient_chunk(device: torch.device) -> int:
    """How many per-code gradients `core.fisher` takes at once on this device."""
    return GPU_CHUNK if device.type == "cuda" else CPU_CHUNK
