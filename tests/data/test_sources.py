import re

import pytest

from expunge.data.folder import write_folder
from expunge.data.s3 import write_s3
from expunge.data.sources import SOURCES, find_loader
from expunge.errors import UserError


def test_names_and_addresses_find_their_loader() -> None:
    assert find_loader("digits") is SOURCES["digits"]
    assert find_loader("folder:some/where") is write_folder
    assert find_loader("s3://bucket/prefix") is write_s3


@pytest.mark.parametrize("source", ["", "imagenet", "folder:", "s3:bucket", "s3://", "digits:1"])
def test_an_unknown_source_lists_the_known_ones(source: str) -> None:
    known = "digits, mnist, fashion-mnist, cifar10, cifar100, folder:PATH, s3://BUCKET/PREFIX"
    with pytest.raises(
        UserError, match=re.escape(f"source {source!r} is unknown; expected one of {known}")
    ):
        find_loader(source)


@pytest.mark.parametrize(
    "source",
    [
        "s3://AKIAHUSH:hush@bucket/prefix",
        "s3://hush@bucket",
        "s3://AKIA:hu/sh+hush@bucket/prefix",
        "S3://AKIA:hush@bucket/prefix",
        "s3:AKIA:hush@bucket",
        "s3://hush:9000/bucket",
    ],
)
def test_a_credential_is_refused_and_not_repeated(source: str) -> None:
    remedy = "expected s3://BUCKET/PREFIX, with the credentials in AWS_ACCESS_KEY_ID and AWS_SECRET"
    with pytest.raises(UserError, match=remedy) as caught:
        find_loader(source)
    assert "hush" not in str(caught.value).lower()


def test_a_prefix_may_have_any_character() -> None:
    assert find_loader("s3://bucket/a@b:c") is write_s3
