"""Sources of images, by name.

To add a source, write one file in this folder and one line in `SOURCES`. The file defines a loader:
a function from a `PrepareDataConfig` and a folder to a `DatasetInfo`, which writes all of a data
set folder but `dataset.json` (see `expunge.formats.dataset`). Pixels in memory go through
`array_set.write_array_set`, image files through `image_set.write_image_set`. A name that ends in
capitals (`folder:PATH`) is an address: what stands before the capitals is its beginning, and the
user writes the rest.
"""

import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

from expunge.config import PrepareDataConfig
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo

Loader = Callable[[PrepareDataConfig, Path], DatasetInfo]

# Name: its loader, as "module:attribute". Text and no import, so that a source's libraries are
# loaded where that source is used.
SOURCES = {
    "digits": "expunge.data.digits:write_digits",
    "mnist": "expunge.data.torchvision_sets:write_torchvision",
    "fashion-mnist": "expunge.data.torchvision_sets:write_torchvision",
    "cifar10": "expunge.data.torchvision_sets:write_torchvision",
    "cifar100": "expunge.data.torchvision_sets:write_torchvision",
    "folder:PATH": "expunge.data.folder:write_folder",
    "s3://BUCKET/PREFIX": "expunge.data.s3:write_s3",
}


def find_loader(source: str) -> Loader:
    """Return the loader for a source as the user writes it.

    Raises:
        UserError: there is no such source, and the message lists the known ones; or it holds a
            credential, which would be kept with the run, and the message does not repeat it.
    """
    loader: Loader = pkgutil.resolve_name(SOURCES[_find_name(source)])
    return loader


def _find_name(source: str) -> str:
    """Return the key of `SOURCES` for a source as the user writes it."""
    # first, so that no other message repeats the credential
    bucket = re.match(r"\s*s3:/*([^/]*)", source, re.IGNORECASE)
    if bucket and ("@" in bucket[1] or ":" in bucket[1]):
        raise UserError(
            "the source s3://... holds a user name, a key or a port before its bucket; expected "
            "s3://BUCKET/PREFIX, with the credentials in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and an address in AWS_ENDPOINT_URL"
        )
    for name in SOURCES:
        beginning = re.split("[A-Z]", name)[0]
        is_address = beginning != name
        if is_address and source.startswith(beginning) and source != beginning:
            return name
        if not is_address and source == name:
            return name
    raise UserError(f"source {source!r} is unknown; expected one of {', '.join(SOURCES)}")
