"""Number format of a model's products, by what the hardware has."""

import torch

from expunge.errors import UserError


def choose_precision(requested: str, device: torch.device) -> str:
    """Return `requested`, or for "auto" bf16 where the device multiplies it in silicon, else fp32.

    Raises:
        UserError: fp16 is asked for on a device that has no use for it, or bf16 on a GPU without.
    """
    if requested == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise UserError(
            f"precision is 'fp16' and the device is a {device.type}; fp16 needs a CUDA GPU, "
            "choose auto, fp32 or bf16"
        )
    if requested == "bf16" and device.type == "cuda" and not has_bf16(device):
        raise UserError("precision is 'bf16', which this GPU does not have; choose fp16 or fp32")
    return requested


def has_bf16(device: torch.device) -> bool:
    """Return whether the device has instructions for bf16 products.

    Emulation does not count, as it gains no speed.
    """
    if device.type == "cuda":
        # torch says yes by default where it only emulates
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is not None:
        found = capabilities()
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
    # torch before get_capabilities: the same questions under private names
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in asked)
