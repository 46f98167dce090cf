"""The choice of a number format."""

import pytest
import torch

from expunge.core.precision import choose_precision, has_bf16
from expunge.errors import UserError

CPU = torch.device("cpu")


def test_auto_follows_the_hardware() -> None:
    assert choose_precision("auto", CPU) == ("bf16" if has_bf16(CPU) else "fp32")
    assert choose_precision("fp32", CPU) == "fp32"
    assert choose_precision("bf16", CPU) == "bf16"


def test_older_torch_gives_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = has_bf16(CPU)
    if hasattr(torch.cpu, "get_capabilities"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", None)
        # the private names ask the public one here
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: expected)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert has_bf16(CPU) == expected


def test_fp16_is_for_gpus() -> None:
    with pytest.raises(UserError, match="precision is 'fp16' and the device is a cpu; fp16 needs"):
        choose_precision("fp16", CPU)


def test_bf16_is_refused_where_a_gpu_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match="precision is 'bf16', which this GPU does not have"):
        choose_precision("bf16", torch.device("cuda"))
    assert choose_precision("auto", torch.device("cuda")) == "fp32"
