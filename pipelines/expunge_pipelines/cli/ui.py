"""`expunge ui`: MLflow's own page on the state of this folder."""

import os
import socket
import sys

import click

from expunge import environment
from expunge.errors import UserError


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True)
def ui(port: int, host: str) -> None:
    """Open the MLflow UI on this state. It runs until Ctrl-C."""
    from expunge import registry

    uri = registry.prepare_uri()
    if uri.startswith("http"):
        raise UserError("MLFLOW_TRACKING_URI names a server, which has a UI of its own: open that")
    _check_free(host, port)
    click.echo(f"MLflow UI of {environment.home()} at http://{host}:{port}", err=True)
    server = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    server += ["--backend-store-uri", uri, "--host", host, "--port", str(port)]
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    sys.stderr.flush()  # the buffer is lost with the process's image
    os.execv(server[0], server)  # noqa: S606 (our own interpreter, no shell)


def _check_free(host: str, port: int) -> None:
    """Refuse a port that is taken, since the server only logs that and ends with 0."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UserError(
            f"the UI cannot be served at {host}:{port} ({error}); choose another --port or --host"
        ) from error
