"""Connection to Kubeflow Pipelines: quick to say that a server is down, and silent on stdout.

Left to itself kfp waits without limit, asks five times for a server's health, takes a login page
for an empty answer, keeps settings in the home folder, and prints links.
"""

import io
import json
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any
from urllib.parse import urlsplit

from expunge.errors import OperationalError, UserError

PORTS = {"http": 80, "https": 443}
CONNECT_SECONDS = 5.0  # a TCP handshake takes two round trips at most; 5 s cover any network
ANSWER_SECONDS = 30.0  # the slowest answer is that to an upload, which the server compiles
LONGEST = 300  # characters of a server's message; its causes follow each other without end
EXAMPLES = "http://localhost:8888 or https://kubeflow.example.com/pipeline"
REMEDIES = {
    401: "; check EXPUNGE_KFP_TOKEN",
    403: "; check EXPUNGE_KFP_TOKEN and EXPUNGE_KFP_NAMESPACE",
}


def connect() -> Any:
    """Return a `kfp.Client` for the server that the environment names, which has answered once.

    EXPUNGE_KFP_HOST is its address, EXPUNGE_KFP_NAMESPACE the namespace where several users share
    it, EXPUNGE_KFP_TOKEN a bearer token, EXPUNGE_KFP_CA a file of certificates to trust.

    Raises:
        UserError: one of the four is missing or cannot be used.
        OperationalError: the server cannot be reached, or refuses.
    """
    host, token, authorities = _read_host(), _read_token(), _read_authorities()
    namespace = user_namespace()
    # Before kfp, which tries five times until it says that nothing listens there.
    _check_reachable(host)
    with translate_errors("be asked for its health"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # that a server has to be of version 2
        from kfp import Client

        # With any namespace but kfp's default, the constructor asks the server nothing.
        client = Client(
            host=host, namespace="-", existing_token=token or None, ssl_ca_cert=authorities or None
        )
        client._context_setting["namespace"] = namespace  # its setter writes to the home folder
        _guard(client._healthz_api.api_client.rest_client, host)
        health = client._healthz_api.healthz_service_get_healthz()
    if health.multi_user and not namespace:
        raise UserError(
            f"EXPUNGE_KFP_NAMESPACE is not set, and several users share Kubeflow Pipelines at "
            f"{host}; set it to your namespace there"
        )
    return client


@contextmanager
def translate_errors(doing: str) -> Iterator[None]:
    """Turn what kfp, its transport and the network raise into one `OperationalError` of one line.

    What kfp prints in the meantime, links to all that it touches, is dropped.
    """
    from kfp_server_api import ApiException
    from urllib3.exceptions import HTTPError

    try:
        with redirect_stdout(io.StringIO()):
            yield
    except (ApiException, HTTPError, OSError) as error:  # an error of requests is an OSError
        reason = " ".join(_explain(error).split())
        raise OperationalError(
            f"Kubeflow Pipelines at {_read_host()} could not {doing}: {reason}"
        ) from error


def user_namespace() -> str:
    """Return the namespace that the environment names; empty for a server of one user."""
    return os.environ.get("EXPUNGE_KFP_NAMESPACE", "").strip()


def link_run(run: str) -> str:
    """Return the page of a run in the UI of Kubeflow Pipelines, which is served beside its API."""
    return f"{_read_host()}/#/runs/details/{run}"


def is_passing(error: OperationalError) -> bool:
    """Return whether the same request may do later: no answer came, or one that blames the server.

    After such an error the request may have been carried out all the same.
    """
    cause = error.__cause__
    status = getattr(cause, "status", None)
    return cause is not None and (not status or status in (408, 429) or status >= 500)


def is_missing(error: Any) -> bool:
    """Return whether an `ApiException` says, in the server's words, that a thing is missing."""
    return error.status == 404 and _parse_object(error.body) is not None


def _read_host() -> str:
    text = os.environ.get("EXPUNGE_KFP_HOST", "").strip().rstrip("/")
    if not text:
        raise UserError(
            f"EXPUNGE_KFP_HOST is not set; set it to the address of Kubeflow Pipelines, such as "
            f"{EXAMPLES}"
        )
    if "@" in text:
        raise UserError(
            "EXPUNGE_KFP_HOST holds a user name or a password, which kfp does not send; expected "
            "the address alone, and a bearer token in EXPUNGE_KFP_TOKEN"
        )
    try:
        parts = urlsplit(text)
        known = parts.scheme in PORTS and parts.hostname and (parts.port or PORTS[parts.scheme])
    except ValueError:  # a port that is none
        known = None
    if not known or parts.query or parts.fragment:
        raise UserError(
            f"EXPUNGE_KFP_HOST is {text.partition('?')[0]!r}; expected an address such as "
            f"{EXAMPLES}, without anything after its path"
        )
    return text


def _read_token() -> str:
    token = os.environ.get("EXPUNGE_KFP_TOKEN", "").strip()
    if " " in token or not (token.isascii() and token.isprintable()):
        raise UserError(
            "EXPUNGE_KFP_TOKEN holds white space or a character that no HTTP header takes; "
            "expected the bare token, without the word Bearer"
        )
    return token


def _read_authorities() -> str:
    """Return the path of the file of certificates.

    It is read here to see that it is one: kfp fails late, and does not name the file.
    """
    path = os.environ.get("EXPUNGE_KFP_CA", "")
    if path:
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:
            raise UserError(
                f"EXPUNGE_KFP_CA is {path!r}, which cannot be read ({error}); expected a file of "
                "certificates as PEM"
            ) from error
    return path


def _check_reachable(host: str) -> None:
    """Try a TCP handshake. kfp's transport knows no proxies, so none can stand between."""
    parts = urlsplit(host)
    address = (parts.hostname or "", parts.port or PORTS[parts.scheme])
    try:
        socket.create_connection(address, CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        raise OperationalError(
            f"Kubeflow Pipelines at {host} cannot be reached ({error}); start it or its port "
            "forwarding, or check EXPUNGE_KFP_HOST"
        ) from error


def _guard(transport: Any, host: str) -> None:
    """Give every request a time limit, send it once, and look whether JSON comes back.

    A request that is repeated may be carried out twice. Behind a login, an address that wants a
    token leads to an HTML page with status 200, which kfp reads as an object of nothing but None.
    """
    from kfp_server_api import ApiException
    from urllib3.util import Retry

    send = transport.request
    once = Retry(total=3, connect=0, read=0, other=0, redirect=3)
    transport.pool_manager.connection_pool_kw["retries"] = once

    def request(*arguments: Any, **options: Any) -> Any:
        options["_request_timeout"] = (CONNECT_SECONDS, ANSWER_SECONDS)
        try:
            answer = send(*arguments, **options)
        except ApiException as error:  # whose body kfp decodes as it is, even where there is none
            error.body = (error.body or b"").decode("utf-8", "replace").encode()
            raise
        if _parse_object(answer.data) is None:
            raise OperationalError(
                f"{host} answered, but not as Kubeflow Pipelines does; it may be a login page: "
                "check EXPUNGE_KFP_TOKEN and EXPUNGE_KFP_HOST"
            )
        return answer

    transport.request = request


def _parse_object(text: str | bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _explain(error: Exception) -> str:
    """Return what the server said, or what stood between."""
    status = getattr(error, "status", None)
    if not status:
        text = str(getattr(error, "reason", None) or error)  # the cause, of urllib3's MaxRetryError
        untrusted = "CERTIFICATE_VERIFY_FAILED" in text
        return f"{text}; set EXPUNGE_KFP_CA to a file that holds its CA" if untrusted else text
    body = getattr(error, "body", None)
    answer = _parse_object(body)
    remedy = REMEDIES.get(status, "")
    if answer is not None:
        keys = ("message", "error_message", "error")  # the last two are those of uploads
        said = next((str(answer[key]) for key in keys if answer.get(key)), "")
    else:
        said = "" if str(body).lstrip().startswith("<") else str(body or "")
        remedy = "; check EXPUNGE_KFP_HOST" if status == 404 else remedy
    # A server may repeat the header that it refused.
    if token := _read_token():
        said = said.replace(token, "***")
    line = said.strip().partition("\n")[0][:LONGEST]
    named = f"HTTP {status} {getattr(error, 'reason', '')}".strip()
    return (f"{named}: {line}" if line else named) + remedy
