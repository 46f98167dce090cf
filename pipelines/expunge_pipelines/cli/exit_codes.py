"""Exit codes of what came to its end: 0 done, 1 refused, 3 failed or not to be trusted."""

from collections.abc import Mapping
from typing import Any

import click

from expunge.errors import OperationalError, RefusedError
from expunge.states import CANCELLED, FULFILLED
from expunge.verdicts import UNTRUSTWORTHY, read_verdict
from expunge_pipelines.cli.output import warn_of_missing_page

SETTLED = (FULFILLED, CANCELLED)  # a request in any other state is still due


def find_gate_code(result: Mapping[str, Any]) -> int:
    """Return 0 if the gate passed and 1 if it rejected; 3 if the measurement cannot be trusted.

    Why it cannot be trusted is printed on stderr.
    """
    if read_verdict(result) == UNTRUSTWORTHY:
        reasons = " ".join(result.get("problems") or result["reasons"])
        click.echo(f"expunge: this measurement cannot be trusted: {reasons}", err=True)
        return OperationalError.exit_code
    return 0 if result["passed"] else RefusedError.exit_code


def find_queue_code(result: Mapping[str, Any]) -> int:
    """Return 3 if a run failed or cannot be trusted, else 1 if a request is still due, else 0.

    What failed is printed on stderr.
    """
    code = 0
    for run in result["runs"]:
        if "error" in run:
            click.echo(f"expunge: {run['model']}: {run['error']}", err=True)
            code = OperationalError.exit_code
        else:
            warn_of_missing_page(run)
            # A run that the gate rejected is not looked at: each class may have passed alone since.
            if read_verdict(run) == UNTRUSTWORTHY:
                code = find_gate_code(run)
    due = any(entry["state"] not in SETTLED for entry in result["requests"])
    return code or (RefusedError.exit_code if due else 0)
