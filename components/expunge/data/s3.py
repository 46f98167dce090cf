"""The source `s3://bucket/prefix`: image files below a prefix, or one archive of them.

Credentials, region and endpoint are boto3's own (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...).
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.config import PrepareDataConfig
from expunge.data.archive import ARCHIVES, open_archive
from expunge.data.folder import local_file
from expunge.data.image_set import write_image_set
from expunge.data.layout import Parts, Tree, is_ignored
from expunge.data.pool import MAX_THREADS, parallel_map
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
        with _errors_told(config.source):
            client = _client()
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
                tree = _download(client, bucket, keys, prefix, config.splits, Path(folder))
        if archive:
            with open_archive(path, f"s3://{bucket}/{archive}", target.parent) as tree:
                return write_image_set(config, tree, target)
        return write_image_set(config, tree, target)


def _client() -> "S3Client":
    import boto3
    from botocore.config import Config

    try:
        return boto3.Session().client(
            "s3", config=Config(connect_timeout=CONNECT_SECONDS, max_pool_connections=MAX_THREADS)
        )
    except ValueError as error:
        raise DataError(f"S3 cannot be used ({error}); check AWS_ENDPOINT_URL") from error


def _list_keys(client: "S3Client", bucket: str, prefix: str) -> list[str]:
    """The keys below `prefix/` that are not hidden, or the archive whose key is `prefix` itself."""
    is_archive = prefix.lower().endswith(ARCHIVES)
    listed = prefix if is_archive or not prefix else f"{prefix}/"
    keys: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=listed):
        keys += [entry["Key"] for entry in page.get("Contents", [])]
    if is_archive:
        return [prefix] if prefix in keys else []
    return [key for key in keys if key != listed and not is_ignored(_parts(bucket, key, prefix))]


def _parts(bucket: str, key: str, prefix: str) -> Parts:
    """A key's path below the prefix; one that ends with a slash stands for a folder."""
    below = key[len(prefix) + 1 :] if prefix else key
    parts = tuple(below.removesuffix("/").split("/"))
    if ".." in parts or "" in parts:
        raise DataError(
            f"s3://{bucket}/{key} is refused: its key has a part '..' or an empty one; rename the "
            "object to <split>/<class>/<file>"
        )
    return parts


def _download(
    client: "S3Client",
    bucket: str,
    keys: Sequence[str],
    prefix: str,
    splits: Sequence[str],
    folder: Path,
) -> Tree:
    """Fetch the splits' objects into numbered files, each known to the tree by its key."""
    from boto3.s3.transfer import TransferConfig

    tree = Tree(f"s3://{bucket}/{prefix}".rstrip("/"))
    jobs = []
    for number, key in enumerate(keys):
        parts = _parts(bucket, key, prefix)
        if key.endswith("/"):
            tree.folders.add(parts)
        elif parts[0] in splits:
            path = folder / str(number)
            tree.files[parts] = local_file(path, f"s3://{bucket}/{key}")
            jobs.append((key, str(path)))
    alone = TransferConfig(use_threads=False)  # the objects share out the threads instead

    def fetch(job: tuple[str, str]) -> None:
        client.download_file(bucket, job[0], job[1], Config=alone)

    parallel_map(fetch, jobs, threads=MAX_THREADS)
    return tree


@contextmanager
def _errors_told(source: str) -> Iterator[None]:
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
        raise _client_error(source, error) from error
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


def _client_error(source: str, error: "ClientError") -> DataError | OperationalError:
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if code == "NoSuchBucket":
        return DataError(f"{source}: there is no such bucket; check its name and AWS_ENDPOINT_URL")
    if code in _DENIED:
        return DataError(
            f"{source}: access is denied ({code}); check the credentials and the bucket's policy"
        )
    if status >= 500 or status == 429:
        return OperationalError(f"{source}: the store fails with {code} ({status}); try again")
    return DataError(f"{source} cannot be read ({error}); check the bucket and the prefix")
