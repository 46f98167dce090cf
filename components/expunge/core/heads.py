"""Head and body of a classifier: the last linear layer, and what gives it its features.

Two controls, the mask and the soft mask, change the head alone. Every attack on the body has to
find the forgotten class in them.

Shapes: N images, D features, C classes, K codes; H height, W width.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from expunge.core.blocks import join_batches, recording_blocks
from expunge.core.modes import evaluation_mode

MASK, SOFT_MASK = "mask", "soft-mask"  # their names in reports
# A logit that no image reaches, yet finite: minus infinity would make fine-tuning undefined.
MASKED = -1e4
# T of the soft mask: retrained models give the missing class about this much less than the others
# (ResNet-20 on CIFAR-10: -4.9 on average, where the others have 0.5).
SOFT = 5.0


@dataclass(frozen=True)
class Head:
    """A linear layer: logits_NC = features_ND @ weight_CD.T + bias_C."""

    weight_CD: Tensor
    bias_C: Tensor

    def logits(self, features_ND: Tensor) -> Tensor:
        """Compute the logits_NC."""
        return features_ND @ self.weight_CD.T + self.bias_C


@dataclass(frozen=True)
class Observed:
    """Output of a model for some images: features_ND and logits_NC, float32, and the labels.

    `blocks` has the mean-pooled output of each block of the body that was recorded, by its name.
    """

    features_ND: Tensor
    logits_NC: Tensor
    labels_N: Tensor
    blocks: Mapping[str, Tensor] = field(default_factory=dict)

    def of(self, index: int) -> "Observed":
        """Return the part with this label."""
        own_N = self.labels_N == index
        return Observed(
            self.features_ND[own_N],
            self.logits_NC[own_N],
            self.labels_N[own_N],
            {name: rows_ND[own_N] for name, rows_ND in self.blocks.items()},
        )

    def under(self, head: Head) -> "Observed":
        """Return the same features under another head."""
        return replace(self, logits_NC=head.logits(self.features_ND))

    @property
    def finite(self) -> bool:
        """Whether every feature and logit is a number, as the attacks need."""
        values = (self.features_ND, self.logits_NC, *self.blocks.values())
        return all(bool(v.isfinite().all()) for v in values)

    @property
    def right(self) -> float:
        """The share that is predicted right; NaN of no image."""
        return float((self.logits_NC.argmax(dim=1) == self.labels_N).double().mean())


def find_head_name(model: nn.Module, num_classes: int) -> str:
    """Return the name of the head: the model's last linear layer, with an output a class.

    Raises:
        ValueError: the last linear layer has another number of outputs, or there is none.
    """
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    name, last = linear[-1] if linear else ("", None)
    if last is None or last.out_features != num_classes:
        found = f"its last linear layer has {last.out_features} outputs" if last else "it has none"
        raise ValueError(f"the model has no linear head of {num_classes} classes; {found}")
    return str(name)


def read_head(model: nn.Module, num_classes: int) -> Head:
    """Return the head's weights; without a bias, zeros stand for it."""
    layer = model.get_submodule(find_head_name(model, num_classes))
    weight_CD = layer.get_parameter("weight").detach()
    bias_C = layer.bias.detach() if isinstance(layer.bias, Tensor) else weight_CD.new_zeros(1)
    return Head(weight_CD, bias_C.expand(num_classes))


def with_head(model: nn.Module, head: Head) -> nn.Module:
    """Return a copy of the model with another head."""
    # a copy, since the original is still to be measured beside it
    copied = copy.deepcopy(model)
    name = find_head_name(copied, len(head.bias_C))
    classes, width = head.weight_CD.shape
    # a new layer, since the old one may have no bias to write to
    layer = nn.Linear(width, classes, device=head.weight_CD.device)
    with torch.no_grad():
        layer.weight.copy_(head.weight_CD)
        layer.bias.copy_(head.bias_C)
    parent, _, last = name.rpartition(".")
    setattr(copied.get_submodule(parent), last, layer)
    return copied


def observe(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    *,
    blocks: Sequence[str] = (),
) -> Observed:
    """Return features and logits of all (images_NCHW, labels_N), in order and in eval mode.

    The modules of these names in `blocks` are recorded in the same pass.

    Raises:
        ValueError: the model has no linear head, or there is no batch.
    """
    features: list[Tensor] = []
    layer = model.get_submodule(find_head_name(model, num_classes))

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        features.append(arguments[0].float())

    # The head's input is the feature, whatever the body is: pooling and dropout come before it.
    handle = layer.register_forward_pre_hook(keep)
    logits, labels = [], []
    try:
        with (
            evaluation_mode(model),
            torch.no_grad(),
            recording_blocks(model, blocks) as recorded,
        ):
            for images_NCHW, labels_N in batches:
                logits.append(model(images_NCHW).float())
                labels.append(labels_N)
    finally:
        handle.remove()
    if not logits:
        raise ValueError("there is no batch to observe; at least one was expected")
    pooled = join_batches(recorded, len(logits))
    return Observed(torch.cat(features), torch.cat(logits), torch.cat(labels), pooled)


def mask_head(head: Head, forget: Sequence[int]) -> Head:
    """Mask the forgotten classes: their logits are `MASKED` whatever the image is."""
    weight_CD, bias_C = head.weight_CD.clone(), head.bias_C.clone()
    weight_CD[list(forget)] = 0
    bias_C[list(forget)] = MASKED
    return Head(weight_CD, bias_C)


def soft_mask_head(head: Head, retained_features_KD: Tensor, forget: Sequence[int]) -> Head:
    """Mask softly: the forgotten rows become -T mu / |mu| ** 2 with bias 0, T being `SOFT`.

    mu is the mean feature of the retained classes' codes, so that a feature like it gets the logit
    -T, which is what a model retrained without the class gives.
    """
    mean_D = retained_features_KD.mean(dim=0)
    weight_CD, bias_C = head.weight_CD.clone(), head.bias_C.clone()
    weight_CD[list(forget)] = -SOFT * mean_D / mean_D.square().sum()
    bias_C[list(forget)] = 0
    return Head(weight_CD, bias_C)


def mask_heads(
    model: nn.Module, retained_codes_KCHW: Tensor, forget: Sequence[int], num_classes: int
) -> dict[str, Head]:
    """Return the model's head under the mask and under the soft mask, by their names."""
    head = read_head(model, num_classes)
    batches = [(retained_codes_KCHW, torch.zeros(len(retained_codes_KCHW)))]
    features_KD = observe(model, batches, num_classes).features_ND
    return {MASK: mask_head(head, forget), SOFT_MASK: soft_mask_head(head, features_KD, forget)}
