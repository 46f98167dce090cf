"""The source `s3://bucket/prefix`: image files below a prefix, or one archive of them.

Credentials, region and endpoint are boto3's own (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.config import PrepareDataConfig
from expunge.data.archive import ARCHIVES, open_archive
from expunge.data.folder import make_local_file
from expunge.data.image_set import write_image_set
from expunge.data.layout import Parts, Tree, is_ignored
from expunge.data.pool import MAX_THREADS, map_in_parallel
from expunge.errors import DataError, OperationalError
from expunge.formats.dataset import DatasetInfo

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 10  # boto3's 60, tried five times, would take minutes to say that nobody answers
_DENIED = (
    "403",
    "AccessDenied",
    "AllAccessDisabled",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
)


@dataclass(frozen=True)
class _Place:
    """Where the objects lie; the prefix has no slash at its ends."""

    bucket: str
    prefix: str


def write_s3(config: PrepareDataConfig, target: Path) -> DatasetInfo:
    """Download the images to a temporary folder and write them; see `write_image_set`.

    Raises:
        DataError: the bucket is missing, the prefix is empty, access is denied, or a key is unsafe.
        OperationalError: the endpoint does not answer, or fails.
    """
    bucket, _, prefix = config.source.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not bucket:
        raise DataError(f"{config.source} names no bucket; expected s3://bucket/prefix")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with _translate_errors(config.source):
            client = _open_client()
            keys = _list_keys(client, bucket, prefix)
            if not keys:
                raise DataError(
                    f"{config.source} is empty: no object lies below it; check the prefix"
                )
            archive = keys[0] if len(keys) == 1 and keys[0].lower().endswith(ARCHIVES) else None
            if archive:
                path = Path(folder) / Path(archive).name
                client.download_file(bucket, archive, str(path))
            else:
                place = _Place(bucket, prefix)
                tree = _download(client, place, keys, splits=config.splits, folder=Path(folder))
        if archive:
            with open_archive(path, f"s3://{bucket}/{archive}", target.parent) as tree:
                return write_image_set(config, tree, target)
        return write_image_set(config, tree, target)


def _open_client() -> "S3Client":
    import boto3
    from botocore.config import Config

    try:
        return boto3.Session().client(
            # as many connections as threads, or these would wait for each other
            "s3",
            config=Config(connect_timeout=CONNECT_SECONDS, max_pool_connections=MAX_THREADS),
        )
    # boto3 raises it for an endpoint that is no URL
    except ValueError as error:
        raise DataError(f"S3 cannot be used ({error}); check AWS_ENDPOINT_URL") from error


def _list_keys(client: "S3Client", bucket: str, prefix: str) -> list[str]:
    """List the keys below `prefix/` that are not hidden, or the archive of that very key."""
    is_archive = prefix.lower().endswith(ARCHIVES)
    listed = prefix if is_archive or not prefix else f"{prefix}/"
    keys: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=listed):
        keys += [entry["Key"] for entry in page.get("Contents", [])]
    if is_archive:
        return [prefix] if prefix in keys else []
    return [
        key for key in keys if key != listed and not is_ignored(_split_key(bucket, key, prefix))
    ]


def _split_key(bucket: str, key: str, prefix: str) -> Parts:
    """Return a key's path below the prefix; one that ends with a slash stands for a folder."""
    below = key[len(prefix) + 1 :] if prefix else key
    parts = tuple(below.removesuffix("/").split("/"))
    if ".." in parts or "" in parts:
        raise DataError(
            f"s3://{bucket}/{key} is refused: its key has a part '..' or an empty one; rename the "
            "object to <split>/<class>/<file>"
        )
    return parts


def _download(
    client: "S3Client", place: _Place, keys: Sequence[str], *, splits: Sequence[str], folder: Path
) -> Tree:
    """Fetch the splits' objects into numbered files, each known to the tree by its key."""
    from boto3.s3.transfer import TransferConfig

    bucket = place.bucket
    tree = Tree(f"s3://{bucket}/{place.prefix}".rstrip("/"))
    jobs = []
    for number, key in enumerate(keys):
        parts = _split_key(bucket, key, place.prefix)
        if key.endswith("/"):
            tree.folders.add(parts)
        elif parts[0] in splits:
            # a number, since a key may be longer than a file's name, or climb out of the folder
            path = folder / str(number)
            tree.files[parts] = make_local_file(path, f"s3://{bucket}/{key}")
            jobs.append((key, str(path)))
    alone = TransferConfig(use_threads=False)  # the objects share out the threads instead

    def fetch(job: tuple[str, str]) -> None:
        client.download_file(bucket, job[0], job[1], Config=alone)

    map_in_parallel(fetch, jobs, threads=MAX_THREADS)
    return tree


@contextmanager
def _translate_errors(source: str) -> Iterator[None]:
    """Turn boto3's errors into ours: what the user can mend, and what only time can."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as aws

    try:
        yield
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        raise DataError(
            f"{source} needs credentials and there are none ({error}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        ) from error
    except aws.ClientError as error:
        raise _make_client_error(source, error) from error
    except (aws.ConnectionError, aws.HTTPClientError, Boto3Error) as error:
        raise OperationalError(
            f"{source} cannot be reached ({error}); check AWS_ENDPOINT_URL and the network, then "
            "try again"
        ) from error
    except aws.BotoCoreError as error:
        raise DataError(
            f"{source} cannot be read ({' '.join(str(error).split())}); check the bucket's name "
            "and the AWS_* settings"
        ) from error


def _make_client_error(source: str, error: "ClientError") -> DataError | OperationalError:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return DataError(f"{source}: there is no such bucket; check its name and AWS_ENDPOINT_URL")
    if code in _DENIED:
        return DataError(
            f"{source}: access is denied ({code}); check the credentials and the bucket's policy"
        )
    # what the same command may find mended later
    if status >= 500 or status == 429:
        return OperationalError(f"{source}: the store fails with {code} ({status}); try again")
    return DataError(f"{source} cannot be read ({error}); check the bucket and the prefix")
