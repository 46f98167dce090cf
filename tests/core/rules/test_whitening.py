"""Whitened coordinates, against gradients of one sample at a time in float64."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from expunge.core.rules import whitening
from expunge.core.rules.whitening import (
    DAMPING,
    RHO,
    WhitenedSpace,
    compute_whitening,
    damp,
    whiten_stage,
)
from expunge.core.stages import Stage, open_stage

CLASSES, SAMPLES = 3, 70  # more than one chunk
SEED = 4


def build_mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 5), nn.Linear(5, CLASSES)
    )


def build_tokens() -> nn.Module:
    """Build a linear layer on every token, here the columns of an image, and a mean over them."""
    return nn.Sequential(
        nn.Flatten(1, 2),
        nn.Linear(2, 6),
        nn.GELU(),
        nn.Linear(6, 4, bias=False),
        nn.LayerNorm(4),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def build_cnn() -> nn.Module:
    """Build one with a BatchNorm behind a convolution, and a convolution with a bias of its own."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 3, 1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(18, CLASSES),
    )
    norm = model.get_submodule("1")
    with torch.no_grad():
        for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            value.copy_(torch.rand(4) + 0.5)  # type: ignore[operator]
    return model


BUILDERS = {"mlp": build_mlp, "tokens": build_tokens, "cnn": build_cnn}


def make(build: Callable[[], nn.Module]) -> tuple[nn.Module, Stage, Tensor, Tensor]:
    """Return a model, all of it as its stage, what enters it, and a covariance of its features."""
    torch.manual_seed(SEED)
    model = build().eval().requires_grad_(False)
    entering = torch.randn(SAMPLES, 2, 4 if build is not build_mlp else 2, 2)
    stage = open_stage(model, "input_1", CLASSES, entering[:2])
    features_ND = stage.upper(entering)
    return model, stage, entering, features_ND.T.cov()


def whiten(stage: Stage, entering: Tensor, covariance_DD: Tensor) -> WhitenedSpace:
    return whiten_stage(stage, entering, covariance_DD, torch.Generator().manual_seed(1))


def add_biases(stage: Stage) -> nn.Module:
    """Return the upper part in float64, in which every layer has a bias of its own."""
    upper = copy.deepcopy(stage.upper).double()
    for module in upper.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(module.weight.new_zeros(len(module.weight)))
    return upper.requires_grad_()


def compute_gradients(
    stage: Stage, entering: Tensor, covariance_DD: Tensor
) -> dict[str, list[Tensor]]:
    """Return by layer the gradient of u' f, O x I with the bias last, one sample at a time."""
    wide = covariance_DD.double()
    size = len(wide)
    damped_DD = wide + DAMPING * wide.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    values_D, vectors_DD = torch.linalg.eigh(damped_DD)
    root_DD = vectors_DD @ torch.diag(values_D**-0.5) @ vectors_DD.T
    drawn_ND = torch.randn(len(entering), size, generator=torch.Generator().manual_seed(1))
    upper = add_biases(stage)
    gradients: dict[str, list[Tensor]] = {}
    for sample, drawn_D in zip(entering.double(), drawn_ND.double(), strict=True):
        upper.zero_grad()
        (upper(sample[None])[0] @ (drawn_D @ root_DD)).backward()
        for name, module in upper.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                weight, bias = module.weight.grad, module.bias.grad
                whole_OI = torch.cat([weight.flatten(1), bias[:, None]], dim=1)
                gradients.setdefault(name, []).append(whole_OI.clone())
    return gradients


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_scale_is_that_of_gradients_of_single_samples(kind: str) -> None:
    _, stage, entering, covariance_DD = make(BUILDERS[kind])
    space = whiten(stage, entering, covariance_DD)
    gradients = compute_gradients(stage, entering, covariance_DD)
    assert space.layers.keys() == gradients.keys()
    assert len(gradients) >= 2
    for name, layer in space.layers.items():
        assert layer.outputs_OO is not None
        assert layer.inputs_II is not None
        outputs_OO, inputs_II = layer.outputs_OO.double(), layer.inputs_II.double()
        for basis in (outputs_OO, inputs_II):
            torch.testing.assert_close(
                basis.T @ basis, torch.eye(len(basis), dtype=torch.float64), rtol=0, atol=1e-5
            )
        squares = [(outputs_OO.T @ own_OI @ inputs_II) ** 2 for own_OI in gradients[name]]
        lam_OI = torch.stack(squares).mean(dim=0)
        expected_OI = (lam_OI + RHO * lam_OI.mean()) ** -0.5
        torch.testing.assert_close(layer.scale_OI.double(), expected_OI, rtol=2e-3, atol=0)


def test_the_bases_are_those_of_inputs_and_output_gradients() -> None:
    """Of a linear layer, with a 1 behind its inputs; the second moments are diagonal in them."""
    _, stage, entering, covariance_DD = make(build_mlp)
    layer = whiten(stage, entering, covariance_DD).layers["1"]
    inputs_NI = torch.cat([entering.flatten(1), torch.ones(SAMPLES, 1)], dim=1).double()
    assert layer.inputs_II is not None
    rotated_II = layer.inputs_II.double().T @ inputs_NI.T @ inputs_NI @ layer.inputs_II.double()
    off_II = rotated_II - torch.diag(rotated_II.diagonal())
    assert off_II.abs().max() < 1e-4 * rotated_II.diagonal().max()


def test_a_convolutions_rows_are_its_patches() -> None:
    _, stage, entering, covariance_DD = make(build_cnn)
    layer = whiten(stage, entering, covariance_DD).layers["0"]
    padded = nn.functional.pad(entering, (1, 1, 1, 1))
    rows = [
        torch.cat([padded[n, :, i : i + 2, j : j + 2].flatten(), torch.ones(1)]).double()
        for n in range(SAMPLES)
        for i in range(0, 5, 2)
        for j in range(0, 3, 2)
    ]
    moment_II = sum(torch.outer(row, row) for row in rows)
    assert layer.inputs_II is not None
    rotated_II = layer.inputs_II.double().T @ moment_II @ layer.inputs_II.double()
    off_II = rotated_II - torch.diag(rotated_II.diagonal())
    assert off_II.abs().max() < 1e-4 * rotated_II.diagonal().max()


@pytest.mark.parametrize("kind", BUILDERS)
def test_the_origin_is_the_weights(kind: str) -> None:
    _, stage, entering, covariance_DD = make(BUILDERS[kind])
    space = whiten(stage, entering, covariance_DD)
    weights = dict(stage.upper.named_parameters())
    moved = space.move(space.make_origin(), weights)
    assert moved.keys() == weights.keys()
    assert all(torch.equal(moved[name], weights[name]) for name in weights)
    assert all(leaf.requires_grad for leaf in space.make_origin().values())


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_change_is_one_of_the_layers_with_biases_of_their_own(kind: str) -> None:
    """What a BatchNorm's bias takes is what the convolution's would take."""
    _, stage, entering, covariance_DD = make(BUILDERS[kind])
    space = whiten(stage, entering, covariance_DD)
    generator = torch.Generator().manual_seed(2)
    coordinates = {
        name: torch.randn(layer.scale_OI.shape, generator=generator)
        for name, layer in space.layers.items()
    }
    weights = dict(stage.upper.named_parameters())
    moved = functional_call(stage.upper, space.move(coordinates, weights), (entering,))
    reference = add_biases(stage)
    with torch.no_grad():
        for name, layer in space.layers.items():
            change_OI = coordinates[name].double() * layer.scale_OI.double()
            assert layer.outputs_OO is not None
            assert layer.inputs_II is not None
            change_OI = layer.outputs_OO.double() @ change_OI @ layer.inputs_II.double().T
            module = reference.get_submodule(name)
            assert isinstance(module, nn.Linear | nn.Conv2d)
            module.weight += change_OI[:, :-1].reshape(module.weight.shape)
            if layer.bias:
                assert module.bias is not None
                module.bias += change_OI[:, -1]
        expected = reference(entering.double())
    assert (expected - stage.upper(entering)).abs().max() > 0.1
    torch.testing.assert_close(moved.double(), expected, rtol=1e-3, atol=1e-3)


def test_the_bias_is_the_layers_own_or_the_batch_norms_behind_it() -> None:
    _, stage, entering, covariance_DD = make(build_cnn)
    assert {n: own.bias for n, own in whiten(stage, entering, covariance_DD).layers.items()} == {
        "0": "1.bias",
        "3": "3.bias",
    }
    _, stage, entering, covariance_DD = make(build_tokens)
    assert whiten(stage, entering, covariance_DD).layers["3"].bias == ""


def test_a_layer_that_is_too_wide_is_not_rotated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "WIDEST", 7)
    _, stage, entering, covariance_DD = make(build_mlp)
    layer = whiten(stage, entering, covariance_DD).layers["1"]
    assert layer.inputs_II is None  # 8 and a 1
    assert layer.outputs_OO is not None
    gradients = compute_gradients(stage, entering, covariance_DD)["1"]
    squares = [(layer.outputs_OO.double().T @ own_OI) ** 2 for own_OI in gradients]
    lam_OI = torch.stack(squares).mean(dim=0)
    expected_OI = (lam_OI + RHO * lam_OI.mean()) ** -0.5
    torch.testing.assert_close(layer.scale_OI.double(), expected_OI, rtol=2e-3, atol=0)
    coordinates_OI = torch.rand(6, 9)
    expected_OI = layer.outputs_OO @ (coordinates_OI * layer.scale_OI)
    assert torch.equal(layer.compute_change(coordinates_OI), expected_OI)


def test_the_parameters_and_their_gradients_are_left_alone() -> None:
    model, stage, entering, covariance_DD = make(build_cnn)
    before = copy.deepcopy(model.state_dict())
    whiten(stage, entering, covariance_DD)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_the_whitening_is_a_root_of_the_inverse() -> None:
    covariance_DD = torch.rand(50, 6, generator=torch.Generator().manual_seed(3)).T.cov()
    root_DD = compute_whitening(covariance_DD).double()
    damped_DD = damp(covariance_DD, DAMPING)
    torch.testing.assert_close(root_DD, root_DD.T)
    torch.testing.assert_close(
        root_DD @ damped_DD @ root_DD, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-4
    )


def test_padding_by_name_is_not_there() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(24, CLASSES)
    ).requires_grad_(False)
    entering = torch.rand(4, 2, 4, 2)
    stage = open_stage(model, "input_1", CLASSES, entering)
    with pytest.raises(NotImplementedError, match="padding 'same' of a convolution"):
        whiten(stage, entering, torch.eye(24))


class Detached(nn.Module):
    """A model whose first layer gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        logits_NC: Tensor = self.head(self.second(self.first(images.flatten(1)).detach()))
        return logits_NC


def test_a_layer_without_a_gradient_is_named() -> None:
    entering = torch.rand(4, 2, 2, 2)
    stage = open_stage(Detached(), "images", CLASSES, entering)
    with pytest.raises(ValueError, match="the features of the stage do not depend on its layer 'f"):
        whiten(stage, entering, torch.eye(4))
