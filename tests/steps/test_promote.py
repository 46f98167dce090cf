import pytest
from mlflow_store import Registrar

from expunge import registry
from expunge.errors import RefusedError
from expunge.steps.promote import promote

pytest_plugins = ["mlflow_store"]


def test_promote_reports_what_it_replaced(registrar: Registrar) -> None:
    registrar("shapes", 0)
    registrar("shapes", 1)
    assert promote("shapes", 1, None) == {"model": "shapes", "version": 1, "replaced": None}
    assert promote("shapes", 2, 1) == {"model": "shapes", "version": 2, "replaced": 1}
    assert registry.resolve("shapes").version == 2
    with pytest.raises(RefusedError, match="is version 2 by now"):
        promote("shapes", 1, None)
