"""Digest of the code that runs: part of a cached step's key, as its inputs' digests are."""

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from expunge.errors import OperationalError

DIGITS = 16  # hexadecimal: 64 bits, which no two states of the code share by chance
# Whose versions can change what a cached step computes.
LIBRARIES = (
    "accelerate",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pillow",
    "safetensors",
    "torch",
    "torchvision",
)


@cache
def compute_code_digest() -> str:
    """Digest this package's source files and the versions of what they compute with.

    A zipped package is read as well. It takes some 10 ms, once in a process.

    Raises:
        OperationalError: the package was installed without its sources.
    """
    versions = " ".join(f"{name}=={_read_version(name)}" for name in LIBRARIES)
    return _shorten(f"{digest_sources(resources.files('expunge'))} {versions}")


def digest_sources(folder: Traversable) -> str:
    """Digest a folder's `*.py` files and their names, in the order of the names.

    Raises:
        OperationalError: there are none.
    """
    found = dict(_iterate_sources(folder, ""))
    if not found:
        raise OperationalError(
            f"{folder} holds no source file, and without a digest of the code a cached step could "
            "be answered by other code; install expunge with its .py files"
        )
    # by file, so that a line that moves from one file to the next does not go unseen
    return _shorten("".join(f"{name} {digest}\n" for name, digest in sorted(found.items())))


def _iterate_sources(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _iterate_sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield prefix + entry.name, hashlib.sha256(entry.read_bytes()).hexdigest()


def _read_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        # a state of its own: installing the library later changes the digest
        return "none"


def _shorten(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
