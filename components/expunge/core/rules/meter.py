"""Depth and damage of a change of the weights, measured on the codes alone.

Depth is the lowest loss of a forgotten code. Damage is how far the predictions among the retained
classes move from the original's, as the mean Kullback-Leibler divergence, in nats, over blends of
codes. The codes themselves would not do: they are memorised and stay right long after test accuracy
has suffered, the space between them does not. Shapes: K codes, F forgotten codes, R retained
classes, N blends, C channels or classes, H height, W width.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.fisher import code_losses
from expunge.core.rules.paths import Change, Trial, WeightPath

# A blend costs a forward pass at each point that is measured; 64 give the divergence to about 10 %.
MAX_BLENDS = 64


class Meter:
    """Measure a model on its codes with its weights changed, and keep every trial.

    The model has to be in eval mode; its own weights are never touched.
    """

    def __init__(
        self, model: nn.Module, codes_KCHW: Tensor, classes_K: Tensor, forget_K: Tensor
    ) -> None:
        self.model, self.forget_K = model, forget_K
        self.codes_KCHW, self.classes_K = codes_KCHW, classes_K
        self.weights = {name: p.detach() for name, p in model.named_parameters()}
        self.blends_NCHW = blend_codes(codes_KCHW)
        self.retained_R = classes_K[~forget_K]
        self.original_NR = self._predict_retained({})
        self.trials: list[Trial] = []

    def compute_logits(self, change: Change, images_NCHW: Tensor) -> Tensor:
        """Return the logits_NC, float64, of the model with `change` added to its weights."""
        changed = {name: self.weights[name] + part for name, part in change.items()}
        with torch.no_grad():
            logits_NC: Tensor = functional_call(self.model, changed, (images_NCHW,))
        # float64 after the model: the differences of two log softmaxes are far smaller than either
        return logits_NC.double()

    def _predict_retained(self, change: Change) -> Tensor:
        """Return the log probabilities_NR of the blends, among the retained classes only."""
        # Renormalised over the retained classes: what the forgotten ones lose is no damage.
        logits_NC = self.compute_logits(change, self.blends_NCHW)
        return logits_NC[:, self.retained_R].log_softmax(dim=1)

    def measure_damage(self, change: Change) -> float:
        """Return the mean KL divergence over the blends, in nats; infinite for broken logits."""
        changed_NR = self._predict_retained(change)
        terms_NR = self.original_NR.exp() * (self.original_NR - changed_NR)
        total = float(terms_NR.sum(dim=1).mean())
        # a NaN would compare as neither within nor beyond the budget
        return total if math.isfinite(total) else math.inf

    def measure_depth(self, change: Change) -> float:
        """Return the lowest loss of a forgotten code, in nats."""
        logits_FC = self.compute_logits(change, self.codes_KCHW[self.forget_K])
        return float(code_losses(logits_FC, self.classes_K[self.forget_K]).min())

    def measure(self, path: WeightPath, strength: float) -> Trial:
        """Measure and record everything about one point of a path."""
        change = path.change(strength)
        logits_KC = self.compute_logits(change, self.codes_KCHW)
        losses_K = code_losses(logits_KC, self.classes_K)
        right_K = (logits_KC.argmax(dim=1) == self.classes_K).double()
        trial = Trial(
            rule=path.rule,
            sign=path.sign,
            strength=strength,
            lambdas=path.list_lambdas(strength),
            # the lowest: one class that is still known makes the whole request fail
            forget_loss=float(losses_K[self.forget_K].min()),
            retain_loss=float(losses_K[~self.forget_K].mean()),
            forgotten=1 - float(right_K[self.forget_K].mean()),
            retained=float(right_K[~self.forget_K].mean()),
            damage=self.measure_damage(change),
        )
        self.trials.append(trial)
        return trial


def blend_codes(codes_KCHW: Tensor) -> Tensor:
    """Return the midpoints of pairs of codes, `MAX_BLENDS` at most, channels-last.

    Each code is paired with its next neighbour by index, then with the one after, and so on. A
    round that is more than there is room for takes pairs at even distances, so that all codes take
    part alike.
    """
    count, room = len(codes_KCHW), MAX_BLENDS
    blends = []
    for shift in range(1, count // 2 + 1):
        # at half-way round, the second half of the pairs would repeat the first
        last = count // 2 if 2 * shift == count else count
        size = min(last, room)
        rows = torch.arange(size, device=codes_KCHW.device) * last // size
        blends.append((codes_KCHW[rows] + codes_KCHW[(rows + shift) % count]) / 2)
        room -= size
        if not room:
            break
    return torch.cat(blends).contiguous(memory_format=torch.channels_last)
