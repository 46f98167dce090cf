"""A model's modes inside the context and after it."""

from torch import nn

from expunge.core.modes import evaluation_mode


def test_evaluation_mode_restores_each_module() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model.train()
    model[0].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model] == [False, True]
