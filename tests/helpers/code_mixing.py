"""Draw and replace in one go, as a test of the codes wants it; an epoch draws for all batches."""

import torch
from torch import Tensor

from expunge.core.codes import draw_replacements, replace_by_codes


def mix_codes(
    images_NCHW: Tensor,
    labels_N: Tensor,
    codes_KCHW: Tensor,
    classes_K: Tensor,
    *,
    t_mix: float,
    generator: torch.Generator,
) -> Tensor:
    """Replace each image by the code of its label with probability `t_mix`, independently."""
    replaced_N = draw_replacements(len(labels_N), t_mix, generator).to(images_NCHW.device)
    return replace_by_codes(images_NCHW, labels_N, codes_KCHW, classes_K, replaced_N=replaced_N)
