"""The connection to Kubeflow Pipelines, over real HTTP."""

import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from kfp_server import VARIABLES, KfpServer, served

from expunge.errors import OperationalError, UserError
from expunge_pipelines.kubeflow import connection as cluster
from expunge_pipelines.kubeflow.connection import connect, translate_errors

pytest_plugins = ["kfp_server"]

TOKEN = "abc.DEF-123_456"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_connection_asks_once_and_prints_nothing(
    kfp_server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect()
    assert kfp_server.requests == ["GET /healthz"]
    assert kfp_server.authorizations == {None}
    assert client.get_user_namespace() == ""
    assert capsys.readouterr().out == ""


def test_an_address_may_end_with_a_slash(
    kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_HOST", f" {kfp_server.address}/ ")
    connect()
    assert kfp_server.requests == ["GET /healthz"]


def test_without_an_address() -> None:
    with pytest.raises(UserError, match=r"EXPUNGE_KFP_HOST is not set; set it to .* http://local"):
        connect()


@pytest.mark.parametrize(
    "address",
    [
        "ml-pipeline:8888",
        "kubeflow.example.com",
        "ftp://kubeflow.example.com",
        "http://",
        "http://host:port",
        "http://host:99999",
        "https://host/pipeline#/recurringruns",
        "https://host/pipeline?key=secret",
    ],
)
def test_an_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_HOST", address)
    with pytest.raises(UserError, match=r"EXPUNGE_KFP_HOST is '.*'; expected an address") as error:
        connect()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("address", ["https://me:secret@host", "me:secret@host", "http://secret@h"])
def test_an_address_with_a_password_is_not_shown(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_HOST", address)
    with pytest.raises(UserError, match="holds a user name or a password, which kfp") as error:
        connect()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("token", [f"Bearer {TOKEN}", f"{TOKEN}\n{TOKEN}", f"{TOKEN}é"])
def test_a_token_that_no_header_takes_is_not_shown(
    token: str, kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_TOKEN", token)
    with pytest.raises(UserError, match="EXPUNGE_KFP_TOKEN holds white space or") as error:
        connect()
    assert TOKEN not in str(error.value)
    assert kfp_server.requests == []


def test_a_token_is_sent_without_the_line_end_of_its_file(
    kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp_server.token = TOKEN
    monkeypatch.setenv("EXPUNGE_KFP_TOKEN", f"{TOKEN}\n")
    connect()
    assert kfp_server.authorizations == {f"Bearer {TOKEN}"}


def test_a_refused_token_is_shown_nowhere(
    kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kfp_server.token = "another"
    monkeypatch.setenv("EXPUNGE_KFP_TOKEN", TOKEN)
    with pytest.raises(OperationalError, match=r"HTTP 401 .*Bearer \*\*\* is not valid") as error:
        connect()
    shown = capsys.readouterr()
    assert TOKEN not in str(error.value) + shown.out + shown.err
    assert "check EXPUNGE_KFP_TOKEN" in str(error.value)
    kfp_server.refused.clear()


def test_a_token_is_cut_out_before_a_long_message_is_cut_short(
    kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_TOKEN", TOKEN)
    start = "x" * (cluster.LONGEST - 5)
    kfp_server.fail("GET", "/healthz", body=f'{{"message": "{start}{TOKEN}"}}'.encode())
    with pytest.raises(OperationalError, match="xxx") as error:
        connect()
    assert TOKEN[:5] not in str(error.value)


@pytest.mark.parametrize("path", ["no-such-file", ".", "file"])
def test_certificates_that_cannot_be_read(
    path: str, tmp_path: Path, kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no certificate")
    monkeypatch.setenv("EXPUNGE_KFP_CA", str(tmp_path / path))
    with pytest.raises(UserError, match=r"EXPUNGE_KFP_CA is '/.*', which cannot be read .* as PEM"):
        connect()
    assert kfp_server.requests == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def test_a_server_that_is_down_is_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("EXPUNGE_KFP_HOST", address)
    before = time.monotonic()
    with pytest.raises(OperationalError, match=f"at {address} cannot be reached .*refused.*start"):
        connect()
    assert time.monotonic() - before < 2
    assert capsys.readouterr().out == ""


def test_a_host_name_that_cannot_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_HOST", f"http://{'a' * 70}.example")
    with pytest.raises(OperationalError, match="cannot be reached"):
        connect()


def test_a_server_that_never_answers_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("EXPUNGE_KFP_HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(OperationalError, match=r"could not be asked for its health: .*timed o"):
            connect()
        silent.settimeout(0.1)
        for _ in ("the handshake", "the request"):
            silent.accept()[0].close()
        with pytest.raises(TimeoutError):
            silent.accept()


def test_a_login_page_is_no_answer(kfp_server: KfpServer) -> None:
    kfp_server.fail("GET", "/healthz", status=200, body=b"<html>Log in</html>")
    with pytest.raises(OperationalError, match="may be a login page: check EXPUNGE_KFP_TOKEN"):
        connect()


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, b'{"message": "no user"}', r"HTTP 401 \S+: no user; check EXPUNGE_KFP_TOKEN$"),
        (403, b"RBAC: access denied", r"HTTP 403 \S+: RBAC: .* denied; .* EXPUNGE_KFP_NAMESPACE$"),
        (404, b"404 page not found", r"HTTP 404 .*: 404 page not found; check EXPUNGE_KFP_HOST$"),
        (404, b'{"message": "no such run"}', r"HTTP 404 Not Found: no such run$"),
        (500, b'{"error_message": "too\\nlong"}', r"HTTP 500 Internal Server Error: too$"),
        (500, b'{"error": "away", "code": 13}', r"HTTP 500 Internal Server Error: away$"),
        (502, b"<html>nginx</html>", r"HTTP 502 Bad Gateway$"),
        (503, b"", r"HTTP 503 Service Unavailable$"),
        (503, "zurück".encode("latin-1"), r"HTTP 503 .*: zur.ck$"),
    ],
)
def test_a_refusal_is_one_line_with_a_remedy(
    status: int, body: bytes, said: str, kfp_server: KfpServer
) -> None:
    kfp_server.fail("GET", "/healthz", status=status, body=body)
    with pytest.raises(OperationalError, match=said) as error:
        connect()
    expected = f"Kubeflow Pipelines at {kfp_server.address} could not be asked for its health: "
    assert str(error.value).startswith(expected)
    assert "\n" not in str(error.value)
    assert kfp_server.requests == ["GET /healthz"]


def test_a_server_for_several_users_needs_a_namespace(
    kfp_server: KfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp_server.multi_user = True
    with pytest.raises(UserError, match="EXPUNGE_KFP_NAMESPACE is not set, and several users"):
        connect()
    monkeypatch.setenv("EXPUNGE_KFP_NAMESPACE", "kubeflow")  # what kfp takes for no namespace
    assert connect().get_user_namespace() == "kubeflow"


def test_what_kfp_prints_is_dropped(
    kfp_server: KfpServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = connect()
    with translate_errors("make an experiment"):
        client.create_experiment("expunge-digits")
    assert capsys.readouterr() == ("", "")


def test_a_bug_stays_a_bug(kfp_server: KfpServer) -> None:
    with pytest.raises(ZeroDivisionError), translate_errors("divide"):
        _ = 1 / 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "expunge tests")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
def encrypted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KfpServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with served(context) as server:
        monkeypatch.setenv("EXPUNGE_KFP_HOST", server.address)
        yield server


def test_an_authority_of_ones_own(
    encrypted: KfpServer, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPUNGE_KFP_CA", str(certificate))
    connect()
    assert encrypted.requests == ["GET /healthz"]


def test_an_authority_that_nobody_knows(encrypted: KfpServer) -> None:
    with pytest.raises(OperationalError, match=r"CERTIFICATE_VERIFY_FAILED.*; set EXPUNGE_KFP_CA"):
        connect()
    assert encrypted.requests == []
