"""A ladder on the local runner: the first rung that does is promoted, and none if none does."""

import json
from pathlib import Path

import pytest
from trained_store import GONE, NAME, RECIPE, command, document, state

from expunge import ledger, registry

ANOTHER = 5


@pytest.mark.slow
def test_the_first_rung_that_does_is_promoted_and_none_if_none_does(tmp_path: Path) -> None:
    """Codes leave class 3 in the body of this network, and replay does not."""
    home = tmp_path / "home"
    with state(home):
        document("train", NAME, *RECIPE)
        found = document("forget", NAME, "--classes", str(GONE), "--until", "suppressed")
        assert (found["rule"], found["grade"], found["version"]) == ("replay", "suppressed", 2)
        below, last = found["rungs"]
        assert (below["grade"], below["rejections"]) == ("hidden", ["grade hidden"])
        assert below["rule"] in ("paper", "natural")
        assert (last["rule"], last["passed"], found["remedy"]) == ("replay", True, None)
        assert {"perturb", "validate", "perturb_2", "validate_2"} <= found["seconds"].keys()
        assert "perturb_3" not in found["seconds"]
        assert registry.resolve(NAME).version == 2
        assert 'id="rungs"' in Path(found["report"]).read_text()
        kept = json.loads(registry.read_artifact(found["run_id"], "validation.json"))
        assert kept["rungs"] == found["rungs"]

        # a check that is made beside oracles alone: no rung can pass it here
        policy = tmp_path / "policy.yaml"
        policy.write_text("block: [forget_error, head_recovery]\n")
        options = ["--classes", str(ANOTHER), "--until", "suppressed", "--policy", str(policy)]
        code, out, err = command("forget", NAME, *options)
        assert code == 1, err
        assert out.strip().endswith(f"expunge train {NAME} --without {ANOTHER} ...")
        rungs = [line.split()[:2] for line in out.splitlines() if "head_recovery" in line][:3]
        assert [number for number, _ in rungs] == ["1", "2", "3"]
        assert [rule for _, rule in rungs[1:]] == ["replay", "align"]
        assert registry.resolve(NAME).version == 2
        assert len(registry.list_versions(NAME)) == 2
        assert [entry.state for entry in ledger.list_requests(NAME)] == ["fulfilled", "rejected"]


def test_a_rule_beside_a_ladder_is_refused(tmp_path: Path) -> None:
    with state(tmp_path / "home"):
        found = document("run-requests", "--until", "suppressed", "--rule", "replay", code=2)
    assert "rule is 'replay', and a ladder (--until) tries codes, replay, align" in found["error"]
