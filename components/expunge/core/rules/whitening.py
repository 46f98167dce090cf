"""Whitened coordinates of a stage's weights, in which its features change alike in all directions.

The weights W of a layer, with its bias as a last column, change by

    dW = U_G (V / sqrt(lam + rho mean(lam))) U_A'

U_A are the eigenvectors of the second moment of the layer's inputs with a 1 (of a convolution: of
its patches), U_G those of the gradients at its outputs, and lam, output x input, the mean over
samples of the squared per-sample gradient in these bases (EKFAC; George et al., "Fast approximate
natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018). The gradients are those
of u' f for features f and a random u whose covariance is the inverse of the features' own within a
class, so that |V| measures how far the features of the samples move, in their own standard
deviations. Without this, L-BFGS does not get anywhere.

Shapes: N samples, O outputs of a layer, I inputs with the 1, L positions of a convolution, D
features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from expunge.core.eigen import decompose
from expunge.core.stages import Stage, iterate_layers

RHO = 0.01  # of the mean of lam: what keeps directions that no sample has from being free
DAMPING = 0.01  # of the mean variance of a feature
# A side of a layer that is wider is not rotated: the eigenvectors take its square in memory, and
# its cube in time.
WIDEST = 5000
CHUNK = 64  # samples in one backward pass


@dataclass(frozen=True)
class Layer:
    """One layer in whitened coordinates. `bias` is the parameter that takes the last column.

    `gain_O` is what a change of the layer's own output becomes behind its BatchNorm, whose bias
    stands for the one that the layer has not; ones for a bias of its own. Without any `bias` the
    last column is dropped.
    """

    weight: str
    bias: str
    gain_O: Tensor
    outputs_OO: Tensor | None  # U_G; None where it is not rotated
    inputs_II: Tensor | None  # U_A
    scale_OI: Tensor

    def compute_change(self, coordinates_OI: Tensor) -> Tensor:
        """Return dW, O x I."""
        change_OI = coordinates_OI * self.scale_OI
        if self.outputs_OO is not None:
            change_OI = self.outputs_OO @ change_OI
        return change_OI if self.inputs_II is None else change_OI @ self.inputs_II.T


class WhitenedSpace:
    """The layers of a stage in whitened coordinates."""

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self.layers = dict(layers)

    def make_origin(self) -> dict[str, Tensor]:
        """Return the coordinates of no change, which an optimiser may change."""
        return {
            name: torch.zeros_like(layer.scale_OI, requires_grad=True)
            for name, layer in self.layers.items()
        }

    def move(
        self, coordinates: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the stage's parameters at these coordinates; `weights` are those at the origin."""
        moved = dict(weights)
        for name, coordinates_OI in coordinates.items():
            layer = self.layers[name]
            change_OI = layer.compute_change(coordinates_OI)
            weight = weights[layer.weight]
            moved[layer.weight] = weight + change_OI[:, :-1].reshape(weight.shape)
            if layer.bias:
                moved[layer.bias] = weights[layer.bias] + layer.gain_O * change_OI[:, -1]
        return moved


def compute_whitening(covariance_DD: Tensor) -> Tensor:
    """Return (covariance + DAMPING mean(diag) I) ** (-1/2), symmetric, float32."""
    values_D, vectors_DD = decompose(damp(covariance_DD, DAMPING))
    whitening_DD: Tensor = ((vectors_DD / values_D.sqrt()) @ vectors_DD.T).float()
    return whitening_DD


def damp(matrix: Tensor, share: float) -> Tensor:
    """Return the matrix in float64 plus `share` of its mean diagonal on the diagonal."""
    wide = matrix.double()
    return wide + share * wide.diagonal().mean() * torch.eye(
        len(wide), dtype=wide.dtype, device=wide.device
    )


def whiten_stage(
    stage: Stage, entering: Tensor, covariance_DD: Tensor, generator: torch.Generator
) -> WhitenedSpace:
    """Return the whitened coordinates of a stage.

    Args:
        stage: its parameters need no gradients, and get none.
        entering: N samples of what enters it, of the retained classes.
        covariance_DD: of the features within a class.
        generator: draws u, on the CPU.
    """
    whitening_DD = compute_whitening(covariance_DD)
    modules = dict(iterate_layers(stage))
    recorded = _Recorder(modules)
    drawn_ND = torch.randn(len(entering), len(whitening_DD), generator=generator)
    probes_ND = drawn_ND.to(entering.device) @ whitening_DD
    with recorded:
        chunks = (torch.split(values, CHUNK) for values in (entering, probes_ND))
        for part, probe_ND in zip(*chunks, strict=True):
            # a leaf that wants a gradient, since the parameters may want none
            features_ND = stage.upper(part.clone().requires_grad_())
            (probe_ND * features_ND.float()).sum().backward()
            recorded.store()
    owners = _find_bias_owners(stage.upper)
    return WhitenedSpace(
        {
            name: _whiten_layer(stage.upper, name, owners.get(name, ""), *recorded.read(name))
            for name in modules
        }
    )


class _Recorder:
    """Keeps inputs (as rows) and output gradients of layers, during backward passes."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = dict(modules)
        self.inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
        self.gradients: dict[str, list[Tensor]] = {name: [] for name in modules}
        self._latest: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "_Recorder":
        for name, module in self.modules.items():

            def keep(
                _: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name
            ) -> None:
                output.retain_grad()
                self._latest[name] = (given[0].detach(), output)

            self._handles.append(module.register_forward_hook(keep))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def store(self) -> None:
        """Take over what the last pass left."""
        for name, (given, output) in self._latest.items():
            if output.grad is None:
                raise ValueError(f"the features of the stage do not depend on its layer {name!r}")
            self.inputs[name].append(_unfold(self.modules[name], given))
            self.gradients[name].append(_make_rows(self.modules[name], output.grad))
        self._latest.clear()

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """Return inputs_NLI and gradients_NLO of a layer."""
        return torch.cat(self.inputs[name]), torch.cat(self.gradients[name])


def _unfold(module: nn.Module, given: Tensor) -> Tensor:
    """Return a layer's inputs as rows with a 1, N x L x I."""
    if isinstance(module, nn.Conv2d):
        # "same" or "valid"; no architecture of torchvision has it in its last stage
        if isinstance(module.padding, str):
            raise NotImplementedError(f"padding {module.padding!r} of a convolution")
        patches_NIL = nn.functional.unfold(
            given, module.kernel_size, module.dilation, module.padding, module.stride
        )
        rows_NLI = patches_NIL.transpose(1, 2)
    else:
        rows_NLI = given.flatten(1, -2) if given.dim() > 2 else given.unsqueeze(1)
    return torch.cat([rows_NLI, rows_NLI.new_ones(*rows_NLI.shape[:-1], 1)], dim=-1)


def _make_rows(module: nn.Module, gradient: Tensor) -> Tensor:
    """Return a layer's output gradients as rows, N x L x O."""
    if isinstance(module, nn.Conv2d):
        return gradient.flatten(2).transpose(1, 2)
    return gradient.flatten(1, -2) if gradient.dim() > 2 else gradient.unsqueeze(1)


def _whiten_layer(
    upper: nn.Module, name: str, owner: str, inputs_NLI: Tensor, gradients_NLO: Tensor
) -> Layer:
    rotated_inputs_II = _find_basis(inputs_NLI)
    rotated_outputs_OO = _find_basis(gradients_NLO)
    if rotated_inputs_II is not None:
        inputs_NLI = inputs_NLI @ rotated_inputs_II
    if rotated_outputs_OO is not None:
        gradients_NLO = gradients_NLO @ rotated_outputs_OO
    squares_OI = torch.zeros(
        gradients_NLO.shape[-1], inputs_NLI.shape[-1], device=inputs_NLI.device
    )
    for inputs_LI, gradients_LO in zip(inputs_NLI, gradients_NLO, strict=True):
        squares_OI += (gradients_LO.T @ inputs_LI).square_()
    lam_OI = squares_OI / len(inputs_NLI)
    bias, gain_O = _find_bias(upper, name, owner, gradients_NLO.shape[-1], lam_OI.device)
    return Layer(
        weight=f"{name}.weight",
        bias=bias,
        gain_O=gain_O,
        outputs_OO=rotated_outputs_OO,
        inputs_II=rotated_inputs_II,
        scale_OI=(lam_OI + RHO * lam_OI.mean()).rsqrt(),
    )


def _find_basis(rows_NLX: Tensor) -> Tensor | None:
    """Return the eigenvectors of the rows' second moment; None where there are too many."""
    flat_MX = rows_NLX.flatten(0, 1)
    if flat_MX.shape[1] > WIDEST:
        return None
    return decompose((flat_MX.T @ flat_MX).double())[1].float()


def _find_bias_owners(upper: fx.GraphModule) -> dict[str, str]:
    """Return by layer the BatchNorm that alone reads its output, by name."""
    owners = {}
    for node in upper.graph.nodes:
        users = list(node.users)
        if node.op == "call_module" and len(users) == 1 and users[0].op == "call_module":
            module = upper.get_submodule(str(users[0].target))
            is_affine = isinstance(module, nn.BatchNorm2d) and isinstance(module.bias, Tensor)
            # one that uses the statistics of its batch would take a change of the bias out again
            if is_affine and module.track_running_stats:
                owners[str(node.target)] = str(users[0].target)
    return owners


def _find_bias(
    upper: nn.Module, name: str, owner: str, outputs: int, device: torch.device
) -> tuple[str, Tensor]:
    """Return the parameter that takes a change of the layer's bias, and how much of it."""
    layer = upper.get_submodule(name)
    ones_O = torch.ones(outputs, device=device)
    if isinstance(layer.bias, Tensor):
        return f"{name}.bias", ones_O
    if owner:
        norm: Any = upper.get_submodule(owner)
        gain_O = (norm.running_var + norm.eps).rsqrt() * norm.weight.detach()
        return f"{owner}.bias", gain_O
    return "", ones_O
