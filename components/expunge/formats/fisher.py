"""Fisher information on disk: the total of a model, and the terms of one request.

The total is `fim_total.safetensors` in a model's folder; the terms are `forget`, `retain` and
`gradient.safetensors` in a folder of their own. All are float64, keyed as `named_parameters()`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from expunge.core.fisher import Fisher, ForgetTerms

FISHER = "fim_total.safetensors"
_HOW = "how"  # the one key of a safetensors file's metadata
_TERMS = ("forget", "retain", "gradient")


def save_fisher(folder: Path, total: Fisher, provenance: Mapping[str, str]) -> None:
    """Write the sum over classes of g_c ** 2; `provenance` says how it was computed.

    Equal inputs give equal bytes.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.cpu().contiguous() for name, value in total.items()}
    save_file(tensors, folder / FISHER, metadata=_pack_metadata(provenance))


def load_fisher(folder: Path) -> tuple[Fisher, dict[str, str]]:
    """Return the total that `save_fisher` wrote, and its provenance."""
    from safetensors import safe_open

    with safe_open(folder / FISHER, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, _unpack_metadata(file.metadata())


def save_forget_terms(folder: Path, terms: ForgetTerms) -> None:
    """Write what the rules read: `forget`, `retain` and `gradient.safetensors`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    how = _pack_metadata({"direct": terms.direct, "lost": terms.lost})
    for kind in _TERMS:
        tensors: dict[str, Tensor] = getattr(terms, kind)
        rows = {name: value.cpu().contiguous() for name, value in tensors.items()}
        save_file(rows, folder / f"{kind}.safetensors", metadata=how)


def load_forget_terms(folder: Path, device: torch.device) -> ForgetTerms:
    """Return the terms that `save_forget_terms` wrote, on the device."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from expunge.core.fisher import ForgetTerms

    with safe_open(folder / "forget.safetensors", framework="pt") as file:
        how = _unpack_metadata(file.metadata())
    forget, retain, gradient = (
        load_file(folder / f"{kind}.safetensors", device=str(device)) for kind in _TERMS
    )
    return ForgetTerms(forget, retain, gradient, **how)


def _pack_metadata(values: Mapping[str, Any]) -> dict[str, str]:
    # safetensors writes its metadata in random order, hence one key with sorted JSON
    return {_HOW: json.dumps(dict(values), sort_keys=True)}


def _unpack_metadata(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    """Return what `_pack_metadata` wrote; nothing where a file has none of it."""
    values: dict[str, Any] = json.loads((metadata or {}).get(_HOW, "{}"))
    return values
