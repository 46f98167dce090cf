"""Objective of replay's fit, and the L-BFGS that minimises it.

Shapes: N draws, D features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LAMBDA = 1e-4
EVALUATIONS = 30
CHUNK = 256  # draws in one pass; it bounds the memory


@dataclass
class Objective:
    """The loss of a fit, and its gradient, chunk by chunk of the draws.

    `run` gives the features_ND of the stage with some parameters, and `move` the parameters at some
    coordinates. `weights_N` are the draws' in the loss. `parts` are those of the forgotten and the
    retained draws at the last evaluation, and `count` says how many there were.
    """

    run: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    move: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    drawn: Tensor
    targets_ND: Tensor
    precision_DD: Tensor
    weights_N: Tensor
    forgotten_N: Tensor
    parts: tuple[float, float] = (0.0, 0.0)
    count: int = 0

    def evaluate(self, coordinates: Mapping[str, Tensor]) -> Tensor:
        """Return the loss, and add its gradient to the coordinates'."""
        moved = self.move(coordinates)
        changed = [n for n, value in moved.items() if value.requires_grad]
        # Leaves of their own: the chunks' gradients add up there, and go on to V once.
        held = {n: value.detach().requires_grad_(n in changed) for n, value in moved.items()}
        losses = [0.0, 0.0]
        for start in range(0, len(self.drawn), CHUNK):
            part = slice(start, start + CHUNK)
            gap_ND = self.run(held, self.drawn[part]) - self.targets_ND[part]
            # v' P v and its gradient 2 P v from one product, the largest where D is
            with torch.no_grad():
                weighed_ND = (gap_ND @ self.precision_DD) * self.weights_N[part, None]
                loss_N = (weighed_ND * gap_ND).sum(dim=1)
            torch.autograd.backward(gap_ND, 2 * weighed_ND)
            own_N = self.forgotten_N[part]
            losses[0] += float(loss_N[own_N].sum())
            losses[1] += float(loss_N[~own_N].sum())
        torch.autograd.backward(
            [moved[n] for n in changed], [held[n].grad for n in changed], retain_graph=True
        )
        squares = torch.stack([value.square().sum() for value in coordinates.values()])
        penalty = 0.5 * LAMBDA * squares.sum()
        torch.autograd.backward(penalty)
        self.count, self.parts = self.count + 1, (losses[0], losses[1])
        return penalty.detach() + sum(losses)


def minimise(objective: Objective, origin: Mapping[str, Tensor], unit: float) -> dict[str, Tensor]:
    """Return the coordinates that L-BFGS finds, `unit` being the length of one of its steps."""
    scaled = {name: torch.zeros_like(value, requires_grad=True) for name, value in origin.items()}
    optimiser: Any = torch.optim.LBFGS(
        list(scaled.values()),
        lr=1.0,
        max_iter=EVALUATIONS,
        max_eval=EVALUATIONS,
        history_size=12,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def evaluate() -> Tensor:
        optimiser.zero_grad()
        return objective.evaluate({name: unit * value for name, value in scaled.items()})

    optimiser.step(evaluate)
    return {name: unit * value.detach() for name, value in scaled.items()}
