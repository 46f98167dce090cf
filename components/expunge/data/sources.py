"""Where images come from, by name. A loader writes all of a data set folder but `dataset.json`."""

import re
from collections.abc import Callable
from pathlib import Path

from expunge.config import PrepareDataConfig
from expunge.data.digits import write_digits
from expunge.data.folder import write_folder
from expunge.data.s3 import write_s3
from expunge.data.torchvision_sets import SETS, write_torchvision
from expunge.errors import UserError
from expunge.formats.dataset import DatasetInfo

Loader = Callable[[PrepareDataConfig, Path], DatasetInfo]

SOURCES: dict[str, Loader] = {
    "digits": write_digits,
    **dict.fromkeys(SETS, write_torchvision),
    "folder:PATH": write_folder,
    "s3://BUCKET/PREFIX": write_s3,
}

SCHEMES = {"folder:": "folder:PATH", "s3://": "s3://BUCKET/PREFIX"}


def find_loader(source: str) -> Loader:
    """The loader for a source as the user writes it.

    Raises:
        UserError: there is no such source, and the message lists the known ones; or it holds a
            credential, which would be kept with the run, and the message does not repeat it.
    """
    bucket = re.match(r"\s*s3:/*([^/]*)", source, re.IGNORECASE)
    if bucket and ("@" in bucket[1] or ":" in bucket[1]):
        raise UserError(
            "the source s3://... holds a user name, a key or a port before its bucket; expected "
            "s3://BUCKET/PREFIX, with the credentials in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and an address in AWS_ENDPOINT_URL"
        )
    name = source
    for scheme, full in SCHEMES.items():
        if source.startswith(scheme) and source != scheme:
            name = full
    if name not in SOURCES:
        raise UserError(f"source {source!r} is unknown; expected one of {', '.join(SOURCES)}")
    return SOURCES[name]
