"""What must be so of a home whose run was killed and started again: `python aftermath.py HOME`."""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

from expunge import ledger, registry

NAME, ASKED = "digits", (3, 5)


def check(home: Path) -> None:
    """Check what must be so after the second run, whatever became of the first."""
    found = ledger.list_requests(NAME)
    assert [(entry.state, entry.classes) for entry in sorted(found, key=lambda e: e.classes)] == [
        ("fulfilled", (index,)) for index in ASKED
    ], "a request is lost"
    events = ledger.list_events(NAME)
    fulfilled = Counter(event.request for event in events if event.kind == "request-fulfilled")
    assert fulfilled == {entry.id: 1 for entry in found}, "a request is fulfilled twice"
    assert len(ledger.verify_events()) == len(ledger.list_events())
    assert ledger.list_lost_claims(NAME) == []
    assert not [entry for entry in found if entry.state == "claimed"]

    row = ledger.find_champion(NAME)
    assert row is not None
    assert set(ASKED) <= set(row.forgotten)
    assert {entry.version for entry in found} == {row.version}
    versions = registry.list_versions(NAME)
    assert [entry.version for entry in versions if "champion" in entry.aliases] == [row.version]
    champion = next(entry for entry in versions if entry.version == row.version)
    assert champion.tags["expunge.gate"] == "passed"
    assert champion.promoted
    assert set(registry.read_erased_tags(NAME)) == set(ASKED)
    assert {entry.uri for entry in versions} <= ledger.list_addresses(NAME), "one is not recorded"
    check_registry(home, versions)
    assert [path for path in (home / "runs").glob("*/*") if path.name != "log.txt"] == []


def check_registry(home: Path, versions: list[registry.Version]) -> None:
    """Each version is whole, no other files are there, and no run is open."""
    from mlflow import MlflowClient

    for entry in versions:
        registry.download(entry, home / "check" / str(entry.version))
    shutil.rmtree(home / "check")
    client = MlflowClient(registry.prepare_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == f"expunge/{NAME}"]
    logged = client.search_logged_models([experiment.experiment_id])
    sources = {
        client.get_model_version(NAME, str(entry.version)).source.rpartition("/")[2]
        for entry in versions
    }
    assert {entry.model_id for entry in logged} == sources, "files of no version are left"
    runs = client.search_runs([experiment.experiment_id])
    assert [run.info.run_id for run in runs if run.info.status == "RUNNING"] == []


if __name__ == "__main__":
    os.environ["EXPUNGE_HOME"] = sys.argv[1]
    check(Path(sys.argv[1]))
