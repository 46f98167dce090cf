"""Initial weights of a training: torchvision's by name, a file's, or another model's."""

import hashlib
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import OperationalError, UserError
from expunge.formats.model import MODEL, WEIGHTS, load_model_info
from expunge.models import ARCHITECTURES

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt")
NAMED = 5  # tensors that an error names before it only counts
# torchvision's side classifiers, which `build_model` leaves out
SIDE = ("aux1.", "aux2.", "AuxLogits.")

logger = logging.getLogger(__name__)


def pretrained_state(arch: str, weights: str) -> State:
    """Return the tensors of `weights`: a file, by its suffix, or torchvision's name for them."""
    if weights.endswith(SUFFIXES):
        return read_state(Path(weights))
    return _download(arch, weights)


def model_state(arch: str, source: Path) -> State:
    """Return the tensors of a model folder or of a weights file.

    Raises:
        UserError: the folder holds a model of another architecture, or the file cannot be read.
    """
    if not (source / MODEL).exists():
        return read_state(source)
    found = load_model_info(source).arch
    if found != arch:
        raise UserError(f"{source} holds a {found} and arch is {arch!r}; train with arch {found}")
    return read_state(source / WEIGHTS)


def read_state(path: Path) -> State:
    """Read the tensors of a .safetensors, .pth or .pt file; of a pickle, tensors only.

    Raises:
        UserError: the file is missing, broken, of another kind or not a dictionary of tensors.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no weights file by its name; expected {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"the weights file {path} does not exist")
    raw = _read(path)
    for wrapper in ("state_dict", "model"):  # as common training scripts save them
        if isinstance(raw.get(wrapper), Mapping):
            raw = dict(raw[wrapper])
    wrong = [str(name) for name, value in raw.items() if not isinstance(value, Tensor)]
    if wrong or not raw:
        raise UserError(
            f"{path} is not a dictionary of tensors ({_name_some(wrong) or 'it is empty'}); "
            "save the model's state_dict"
        )
    return raw


def _read(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        raw = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an unpickler raises whatever broken bytes make it run into
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "it is truncated"
        raise UserError(
            f"the weights file {path} cannot be read as tensors ({reason}); save it anew"
        ) from error
    return dict(raw) if isinstance(raw, Mapping) else {"the whole file": raw}


def _download(arch: str, name: str) -> State:
    from torchvision.models import get_model_weights

    if arch in ARCHITECTURES:
        raise UserError(
            f"torchvision has no weights for {arch}; give a file ({', '.join(SUFFIXES)})"
        )
    try:
        known = get_model_weights(arch)
    except ValueError:
        raise UserError(f"torchvision has no weights for an architecture {arch!r}") from None
    if name not in known.__members__:
        raise UserError(
            f"weights is {name!r}; for {arch} expected one of {', '.join(known.__members__)}, "
            f"or a file ({', '.join(SUFFIXES)})"
        )
    try:
        return dict(known[name].get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise OperationalError(
            f"the weights {name} of {arch} cannot be downloaded ({error}); check the network, or "
            f"give a file ({', '.join(SUFFIXES)})"
        ) from error


def load_pretrained(model: nn.Module, state: State, num_classes: int) -> list[str]:
    """Load all of `state`, but leave a head of another number of classes as it was initialised.

    Returns:
        the names of the tensors that were left.

    Raises:
        UserError: any other tensor is missing, of another shape, or unknown to the model.
    """
    expected = model.state_dict()
    # torchvision's files hold side classifiers, and models are built without them
    usable = {
        name: value
        for name, value in state.items()
        if name in expected or not name.startswith(SIDE)
    }
    head = _find_head(model, num_classes)
    left = [
        name
        for name in head
        if name in usable
        # another width of the features is a mismatch, and no other number of classes
        and usable[name].shape[1:] == expected[name].shape[1:]
        and usable[name].shape != expected[name].shape
    ]
    for name in left:
        del usable[name]
    # with its own head filled in, whatever else is missing is a fault
    load_exactly(model, {**usable, **{name: expected[name] for name in left}})
    if left:
        logger.info("the weights are for another number of classes: %s start anew", ", ".join(left))
    return left


def load_exactly(model: nn.Module, state: State) -> None:
    """Load `state`, whose names and shapes must be the model's.

    Raises:
        UserError: they are not; the message names the first few tensors.
    """
    expected = model.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in expected]
    faults += [
        f"{name} is {tuple(value.shape)} instead of {tuple(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if faults:
        raise UserError(
            f"the weights do not fit the model: {_name_some(faults)}; check arch, the image size "
            "and the number of classes"
        )
    model.load_state_dict(state)


def state_digest(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the tensors' names, types, shapes and bytes, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        # viewed as bytes, because numpy has no bfloat16
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _find_head(model: nn.Module, num_classes: int) -> list[str]:
    """Return the weight's and bias's names of the last layer with an output for each class."""
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and len(module.weight) == num_classes
    ]
    return [f"{layers[-1]}.weight", f"{layers[-1]}.bias"] if layers else []


def _name_some(items: list[str]) -> str:
    rest = len(items) - NAMED
    return ", ".join(items[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
