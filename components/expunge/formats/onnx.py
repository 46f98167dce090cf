"""ONNX file of a model: one graph with the preprocessing inside, equal bytes for equal weights.

Input `images`, uint8, N x H x W x C, raw pixels of 0 to 255; output `probabilities`, float32, N x C
(here C is the number of classes). The batch size is free. The graph names no file of the machine
that wrote it; its metadata carries the class names, an opaque id for each forgotten one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, MutableSequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import expunge
from expunge.errors import UserError
from expunge.formats.model import StoredModel, make_opaque_name

if TYPE_CHECKING:
    from torch import nn

FORMAT_VERSION = 1
INPUT, OUTPUT = "images", "probabilities"
INPUT_DESCRIPTION = "images: uint8, N x H x W x C, raw pixels of 0 to 255; normalised in the graph"
# protobuf holds at most 2**31 - 1 bytes; 16 MiB are left for the graph itself
LARGEST_BYTES = 2**31 - 2**24
# more threads than this slow a small network down, and take a shared machine's cores from others
MOST_THREADS = 8


@dataclass(frozen=True)
class Parity:
    """Eager torch against onnxruntime: the largest difference of a probability, over all images.

    `predictions_N` are the classes that the eager model gives, int64, in the order of the images.
    """

    max_abs_difference: float
    equal_argmax: bool
    predictions_N: np.ndarray


def export_onnx(stored: StoredModel, path: Path) -> str:
    """Write the model as ONNX, whole or not at all, and return the SHA-256 of the file.

    Raises:
        UserError: the weights do not fit into one ONNX file.
    """
    import onnx

    weights = sum(t.nbytes for t in stored.module.state_dict().values())
    if weights > LARGEST_BYTES:
        raise UserError(
            f"the weights of {stored.info.arch} take {weights / 1e9:.1f} GB and one ONNX file "
            f"holds at most {LARGEST_BYTES / 1e9:.1f} GB; choose a smaller architecture"
        )
    model = _trace(stored)
    _strip(model)
    model.producer_name, model.producer_version = "expunge", expunge.__version__
    for key, value in sorted(_make_metadata(stored).items()):
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    # protobuf writes its maps in any order unless told
    content = model.SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    # renamed into place, so that a killed export leaves no half of a file under the final name
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)
    return hashlib.sha256(content).hexdigest()


def _make_metadata(stored: StoredModel) -> dict[str, str]:
    info = stored.info
    # the opaque ids once more, in case a caller's description still has the names
    names = [
        make_opaque_name(index) if index in info.forgotten else name
        for index, name in enumerate(info.class_names)
    ]
    return {
        "expunge.arch": info.arch,
        "expunge.class_names": json.dumps(names, ensure_ascii=False),
        "expunge.format_version": str(FORMAT_VERSION),
        "expunge.input": INPUT_DESCRIPTION,
    }


def _trace(stored: StoredModel) -> Any:
    import torch

    channels, height, width = stored.info.input_shape
    # two images: torch.export takes a dimension of 1 as fixed
    images_NHWC = torch.zeros((2, height, width, channels), dtype=torch.uint8)
    with _silence_exporter(), torch.no_grad():
        program: Any = torch.onnx.export(
            _build_served(stored),
            (images_NHWC,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    return program.model_proto


def _build_served(stored: StoredModel) -> nn.Module:
    """Build the module that maps raw images_NHWC to probabilities, as the ONNX graph does."""
    import torch
    from torch import Tensor, nn

    class Served(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = stored.module
            # plain attributes, which the exporter folds into the graph as constants
            self.mean = torch.tensor(stored.info.mean, dtype=torch.float32)
            self.std = torch.tensor(stored.info.std, dtype=torch.float32)

        def forward(self, images_NHWC: Tensor) -> Tensor:
            scaled_NHWC = (images_NHWC.float() / 255 - self.mean) / self.std
            return torch.softmax(self.model(scaled_NHWC.permute(0, 3, 1, 2)), dim=-1)

    return Served().eval()


@contextlib.contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence the exporter inside: its progress lines, warnings and logs."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(message: Any) -> None:
    """Clear every `metadata_props` and `doc_string`, at all depths: they hold paths and traces."""
    if message.DESCRIPTOR.name == "TensorProto":
        message.ClearField("doc_string")
        return
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if isinstance(value, MutableSequence) else (value,):
                _strip(part)


def load_session(path: Path, threads: int | None = None) -> Any:
    """Open an onnxruntime session on the CPU, quiet, with at most `threads` threads.

    The default is one thread a core, up to `MOST_THREADS`.
    """
    import onnxruntime

    if not path.is_file():
        raise UserError(f"{path} does not exist; expected an ONNX file written by export_onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or min(os.cpu_count() or 1, MOST_THREADS)
    # the graph is a chain: no two of its nodes could run at once
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's errors share no base but Exception
        first = str(error).splitlines()[0]
        raise UserError(f"{path} is no ONNX model that runs here ({first}); export it anew") from (
            error
        )


def predict_onnx(session: Any, images_NHWC: np.ndarray, batch: int) -> np.ndarray:
    """Return probabilities, float32, N x classes, of raw uint8 images, `batch` at a time."""
    if images_NHWC.dtype != np.uint8:
        raise ValueError(f"images are {images_NHWC.dtype}; raw pixels in uint8 were expected")
    if batch < 1:
        raise ValueError(f"batch is {batch}; at least 1 was expected")
    classes = session.get_outputs()[0].shape[1]
    parts = [np.empty((0, classes), dtype=np.float32)]
    for start in range(0, len(images_NHWC), batch):
        part = np.ascontiguousarray(images_NHWC[start : start + batch])
        parts.append(session.run([OUTPUT], {INPUT: part})[0])
    return np.concatenate(parts)


def parity(stored: StoredModel, path: Path, batches_NHWC: Iterable[np.ndarray]) -> Parity:
    """Compare the probabilities of the eager float32 model with those of the ONNX file.

    BatchNorm is folded into the convolutions of the graph, so the two differ by rounding: up to
    about 1e-6 in a probability. A probability that is not finite differs by infinity.

    Raises:
        ValueError: there is no image to compare on.
    """
    import torch

    session = load_session(path)
    served = _build_served(stored)
    largest, equal = 0.0, True
    predictions = []
    with torch.no_grad():
        for images_NHWC in batches_NHWC:
            part_NHWC = np.ascontiguousarray(images_NHWC)
            eager_NC = served(torch.from_numpy(part_NHWC)).numpy()
            onnx_NC = predict_onnx(session, part_NHWC, max(len(part_NHWC), 1))
            difference_NC = np.abs(eager_NC - onnx_NC)
            finite = bool(np.isfinite(difference_NC).all())
            largest = max(largest, float(difference_NC.max(initial=0)) if finite else np.inf)
            equal = equal and finite and bool((eager_NC.argmax(1) == onnx_NC.argmax(1)).all())
            predictions.append(eager_NC.argmax(1))
    if not sum(map(len, predictions)):
        raise ValueError("parity of no images; pass at least one")
    return Parity(largest, equal, np.concatenate(predictions))
