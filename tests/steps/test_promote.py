import pytest
from mlflow_store import Registrar

from expunge import ledger, registry
from expunge.errors import RefusedError
from expunge.steps.promote import promote

pytest_plugins = ["mlflow_store"]


def test_promote_reports_what_it_replaced_and_fulfilled(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1, forgotten=(3,))
    request = ledger.add_request("shapes", {3: "x"}, reason="asked", requester="ada").created
    assert request is not None
    rest = {"model": "shapes", "fulfilled": []}
    assert promote("shapes", 1, None) == {"version": 1, "replaced": None, **rest}
    rest["fulfilled"] = [request.id]
    assert promote("shapes", 2, 1) == {"version": 2, "replaced": 1, **rest}
    assert registry.resolve("shapes").version == 2
    registrar("shapes", 2, forgotten=(3,))
    with pytest.raises(RefusedError, match="is version 2 by now"):
        promote("shapes", 3, 1)
