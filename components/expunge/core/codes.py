"""Mnemonic codes: one random image for each class, mixed into training.

Shapes: N images, K codes, C channels, H height, W width. Source of the method: Yamashita, Yamada
and Shibata, "One-Shot Machine Unlearning with Mnemonic Code", ACML 2024, section 3.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_codes(
    classes: Sequence[int], num_classes: int, input_shape: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Draw codes_KCHW for the given class indices, each element from Uniform[0, 1).

    Codes are drawn for all `num_classes` and then selected, so that the code of a class depends on
    the seed alone and not on which other classes take part.

    Raises:
        ValueError: `classes` is empty, not sorted, repeated or out of range.
    """
    chosen = list(classes)
    if not chosen or chosen != sorted(set(chosen)) or chosen[0] < 0 or chosen[-1] >= num_classes:
        raise ValueError(
            f"classes {chosen} must be distinct, sorted indices from 0 to {num_classes - 1}"
        )
    codes_KCHW = torch.rand(
        (num_classes, *input_shape), generator=generator, device=generator.device
    )
    return codes_KCHW[chosen].contiguous()


def draw_replacements(count: int, t_mix: float, generator: torch.Generator) -> Tensor:
    """Draw which of `count` samples a code replaces: bool, shape N, True with chance `t_mix`.

    The `count` random numbers are drawn whatever `t_mix` is, so that a seeded run keeps its order
    of draws.

    Raises:
        ValueError: `t_mix` is no probability.
    """
    if not 0.0 <= t_mix <= 1.0:
        raise ValueError(f"t_mix is {t_mix}; a probability from 0 to 1 was expected")
    return torch.rand(count, generator=generator, device=generator.device) < t_mix


def replace_by_codes(
    images_NCHW: Tensor,
    labels_N: Tensor,
    codes_KCHW: Tensor,
    classes_K: Tensor,
    *,
    replaced_N: Tensor,
) -> Tensor:
    """Replace each image by the code of its label wherever `replaced_N` is True.

    Args:
        images_NCHW: augmented and normalised, as the codes are not.
        labels_N: class indices, all of them among `classes_K`.
        codes_KCHW: the codes.
        classes_K: the class index of each code, in rising order.
        replaced_N: bool.

    Returns:
        The images_NCHW, channels-last.
    """
    # a binary search, because codes are missing where classes are: a label is no row number
    rows_N = torch.searchsorted(classes_K, labels_N)
    mixed_NCHW = torch.where(replaced_N[:, None, None, None], codes_KCHW[rows_N], images_NCHW)
    return mixed_NCHW.contiguous(memory_format=torch.channels_last)
