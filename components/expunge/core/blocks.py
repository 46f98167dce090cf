"""Blocks of a classifier's body, and the mean-pooled output of each.

A block is a stage of the module tree: a group of ResNet's blocks, an encoder's layer, a layer of an
MLP. They are found by structure, so that any architecture has some.

Shapes: N images, C channels, H height, W width, T tokens, D numbers of a pooled output.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# At most so many are looked at: each costs a new head for each model, and neighbours are alike.
MOST = 6


def find_blocks(model: nn.Module, head: str) -> tuple[str, ...]:
    """Return the names of at most `MOST` blocks in order, evenly chosen, the last one among them.

    They are the children of the model that hold other modules, or that hold weights where less
    than two do. Where one child alone holds all, they are sought in it. What holds the head, the
    module of this name, is none.
    """
    prefix, within = "", model
    while True:
        children = [
            (f"{prefix}{name}", child)
            for name, child in within.named_children()
            if any(True for _ in child.parameters()) and not _holds(f"{prefix}{name}", head)
        ]
        groups = [(name, child) for name, child in children if any(True for _ in child.children())]
        if len(groups) != 1:
            break
        # a stem before the only group, or a norm behind it, is no stage of its own
        name, within = groups[0]
        prefix = f"{name}."
    names = [name for name, _ in (groups or children)]
    if len(names) <= MOST:
        return tuple(names)
    step = (len(names) - 1) / (MOST - 1)
    return tuple(names[round(i * step)] for i in range(MOST))


def _holds(name: str, head: str) -> bool:
    return head == name or head.startswith(f"{name}.")


@contextmanager
def recording_blocks(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Record the pooled output of each block, by its name, for every batch that is passed."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []

    def record(name: str) -> None:
        def keep(_: nn.Module, __: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor):
                found[name].append(pool(output))

        handles.append(model.get_submodule(name).register_forward_hook(keep))

    try:
        for name in names:
            record(name)
        yield found
    finally:
        for handle in handles:
            handle.remove()


def join_batches(recorded: dict[str, list[Tensor]], batches: int) -> dict[str, Tensor]:
    """Return the rows of each block, without the blocks that had not one output a batch.

    Those take no part in inference, as an auxiliary classifier, or are used more than once.
    """
    return {name: torch.cat(rows) for name, rows in recorded.items() if len(rows) == batches}


def is_channels_last(sizes: Sequence[int]) -> bool:
    """Return whether a map of these sizes is H x W x C, as Swin's are, and not C x H x W.

    The two sides of an image are alike, and a channel count is seldom one of them.
    """
    first, second, last = sizes
    return first == second != last


def pool(output: Tensor) -> Tensor:
    """Return the mean over places or tokens, float32, shape N x D.

    A map is N x C x H x W or N x H x W x C, a sequence N x T x D.
    """
    if output.dim() == 4:
        places = (1, 2) if is_channels_last(output.shape[1:]) else (2, 3)
        return output.float().mean(dim=places)
    if output.dim() == 3:
        return output.float().mean(dim=1)
    return output.float().flatten(1)
