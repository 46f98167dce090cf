import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from moto.server import ThreadedMotoServer

from expunge.config import PrepareDataConfig
from expunge.data.folder import write_folder
from expunge.data.s3 import write_s3
from expunge.errors import DataError, OperationalError

Write = Callable[..., Path]
Config = Callable[..., PrepareDataConfig]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture
def client(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    settings = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_MAX_ATTEMPTS": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return boto3.Session().client("s3")


@pytest.fixture
def bucket(client: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=name)
    return name


def read(source: str, tmp_path: Path, **settings: Any) -> Any:
    target = tmp_path / "work" / "out"
    shutil.rmtree(target.parent, ignore_errors=True)
    target.mkdir(parents=True)
    info = write_s3(PrepareDataConfig(source, tmp_path, **settings), target)
    assert list(target.parent.iterdir()) == [target]  # the downloads are gone
    return info


def upload(client: Any, bucket: str, root: Path, prefix: str) -> None:
    for path in root.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), bucket, f"{prefix}{path.relative_to(root).as_posix()}")


def test_a_prefix_gives_what_the_folder_gives(
    client: Any, bucket: str, tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in")
    plain = write_folder(folder_config(root), tmp_path / "plain")
    upload(client, bucket, root, "sets/pets/")
    upload(client, bucket, root / "test", "sets/pets2/train/")  # a neighbour with a longer name
    for key in ("sets/pets/", "sets/pets/train/", "sets/pets/train/.DS_Store", "sets/pets/README"):
        client.put_object(Bucket=bucket, Key=key, Body=b"")
    info = read(f"s3://{bucket}/sets/pets", tmp_path)
    assert info.splits == plain.splits
    assert (info.class_names, info.mean, info.std) == (plain.class_names, plain.mean, plain.std)
    assert read(f"s3://{bucket}/sets/pets/", tmp_path).splits == plain.splits
    test = read(f"s3://{bucket}/sets/pets", tmp_path, splits=("test",))
    assert test.splits == {"test": plain.splits["test"]}


def test_a_whole_bucket_is_a_source(
    client: Any, bucket: str, tmp_path: Path, write_images: Write
) -> None:
    upload(client, bucket, write_images(tmp_path / "in"), "")
    assert read(f"s3://{bucket}", tmp_path).splits["train"].images == 6


@pytest.mark.parametrize("kind", ["gztar", "zip"])
def test_an_archive_object_is_a_source(
    kind: str, client: Any, bucket: str, tmp_path: Path, write_images: Write, folder_config: Config
) -> None:
    root = write_images(tmp_path / "in")
    path = Path(shutil.make_archive(str(tmp_path / "pets"), kind, root))
    client.upload_file(str(path), bucket, f"sets/{path.name}")
    client.put_object(Bucket=bucket, Key=f"sets/{path.name}.sha256", Body=b"")
    plain = write_folder(folder_config(root), tmp_path / "plain")
    assert read(f"s3://{bucket}/sets/{path.name}", tmp_path).splits == plain.splits
    client.delete_object(Bucket=bucket, Key=f"sets/{path.name}.sha256")
    assert read(f"s3://{bucket}/sets", tmp_path).splits == plain.splits


def test_broken_objects_are_named_by_their_key(
    client: Any, bucket: str, tmp_path: Path, write_images: Write
) -> None:
    upload(client, bucket, write_images(tmp_path / "in"), "p/")
    client.put_object(Bucket=bucket, Key="p/test/cat/note.txt", Body=b"hello")
    with pytest.raises(DataError, match=rf"^s3://{bucket}/p/test/cat/note.txt is no image"):
        read(f"s3://{bucket}/p", tmp_path)
    client.put_object(Bucket=bucket, Key="a.tar", Body=b"hello")
    with pytest.raises(DataError, match=rf"^s3://{bucket}/a.tar is a damaged or truncated archive"):
        read(f"s3://{bucket}/a.tar", tmp_path)


@pytest.mark.parametrize("key", ["p/../../evil.png", "p/train//evil.png"])
def test_keys_that_climb_out_are_refused(
    key: str, client: Any, bucket: str, tmp_path: Path, write_images: Write
) -> None:
    upload(client, bucket, write_images(tmp_path / "in"), "p/")
    client.put_object(Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(
        DataError, match=r"evil.png is refused: its key has a part '\.\.' or an empty"
    ):
        read(f"s3://{bucket}/p", tmp_path)


@pytest.mark.usefixtures("client")
def test_what_the_user_got_wrong_is_a_data_error(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^s3://no-such-bucket/p: there is no such bucket; check"):
        read("s3://no-such-bucket/p", tmp_path)
    for missing in ("p", "p.zip"):
        with pytest.raises(DataError, match=rf"^s3://{bucket}/{missing} is empty: no object lies"):
            read(f"s3://{bucket}/{missing}", tmp_path)
    with pytest.raises(DataError, match=r"^s3:///p names no bucket; expected s3://bucket/prefix"):
        read("s3:///p", tmp_path)
    with pytest.raises(
        DataError,
        match=r"^s3://B&d/p cannot be read \(Parameter validation failed: Invalid bucket name",
    ):
        read("s3://B&d/p", tmp_path)


@pytest.mark.usefixtures("client")
def test_missing_credentials_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(
        DataError, match=r"needs credentials and there are none .*AWS_ACCESS_KEY_ID"
    ):
        read("s3://b/p", tmp_path)


@pytest.mark.usefixtures("client")
def test_a_bad_endpoint_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "no address")
    with pytest.raises(DataError, match=r"S3 cannot be used .*; check AWS_ENDPOINT_URL"):
        read("s3://bucket/p", tmp_path)


@pytest.mark.usefixtures("client")
def test_a_server_that_is_down_is_an_operational_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(
        OperationalError, match=r"^s3://bucket/p cannot be reached .*AWS_ENDPOINT_URL"
    ):
        read("s3://bucket/p", tmp_path)


@pytest.mark.usefixtures("client")
def test_denied_access_is_told(server: str, bucket: str, tmp_path: Path) -> None:
    def enforce_from(action: bytes) -> None:
        plain = {"Content-Type": "text/plain"}
        urlopen(Request(f"{server}/moto-api/reset-auth", data=action, headers=plain)).close()

    enforce_from(b"0")
    try:
        with pytest.raises(DataError, match=r"/p: access is denied \(InvalidAccessKeyId\); check"):
            read(f"s3://{bucket}/p", tmp_path)
    finally:
        enforce_from(b"inf")


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (403, DataError, r"^s3://bucket/p: access is denied \(403\); check the credentials"),
        (503, OperationalError, r"^s3://bucket/p: the store fails with 503 \(503\); try again"),
        (429, OperationalError, r"^s3://bucket/p: the store fails with 429 \(429\); try again"),
        (418, DataError, r"^s3://bucket/p cannot be read \(An error .*418.*; check the bucket and"),
    ],
)
def test_an_answer_without_a_body_is_told_by_its_status(
    status: int, kind: type[Exception], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as stub:
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{stub.server_port}")
        try:
            with pytest.raises(kind, match=message):
                read("s3://bucket/p", tmp_path)
        finally:
            stub.shutdown()
