import re
import sys
from types import ModuleType

import pytest

from expunge.data.digits import write_digits
from expunge.data.folder import write_folder
from expunge.data.s3 import write_s3
from expunge.data.sources import SOURCES, find_loader
from expunge.data.torchvision_sets import SETS, write_torchvision
from expunge.errors import UserError


@pytest.mark.parametrize(
    ("name", "source"), [("toy", "toy"), ("toy:NUMBER", "toy:7"), ("toy://PLACE", "toy://a/B")]
)
def test_a_source_is_a_file_and_a_line(
    monkeypatch: pytest.MonkeyPatch, name: str, source: str
) -> None:
    module = ModuleType("toy_source")
    module.write_toy = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_source", module)
    monkeypatch.setitem(SOURCES, name, "toy_source:write_toy")
    assert find_loader(source) is module.write_toy
    with pytest.raises(UserError, match=r"source 'tor' is unknown; expected one of .*toy"):
        find_loader("tor")


def test_names_and_addresses_find_their_loader() -> None:
    assert find_loader("digits") is write_digits
    assert {find_loader(name) for name in SETS} == {write_torchvision}
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
