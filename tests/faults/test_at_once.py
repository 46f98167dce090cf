"""Eight processes on one queue and one registry at once, with the steps that the pipelines run."""

import multiprocessing
import os
import random
import shutil
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from databases import Database
from mlflow_store import Registrar, tiny_model

from expunge import ledger, registry
from expunge.config import ClaimConfig
from expunge.errors import RefusedError
from expunge.formats.files import read_json, write_json
from expunge.formats.model import MODEL, load_model_info
from expunge.lifecycle import promotion
from expunge.states import OPEN
from expunge.steps.claim_requests import claim_requests
from expunge.steps.close_requests import close_requests

pytestmark = pytest.mark.faults
pytest_plugins = ["mlflow_store", "databases"]

PROCESSES, MODELS = 8, 100
CLASSES = (1, 3)  # two requests for each model: 200
SECONDS = 600


def test_two_hundred_requests_are_settled_once_each(
    registrar: Registrar, database: Database, tmp_path: Path
) -> None:
    """Each process claims, registers and promotes; some models get both requests in one run."""
    for forgotten in ((), (1,), (3,), CLASSES):
        folder = registrar.folder_of(tiny_model(len(forgotten), forgotten))
        shutil.copytree(folder, tmp_path / "made" / ("-".join(map(str, forgotten)) or "none"))
    names = [f"model-{number}" for number in range(MODELS)]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [
        context.Process(target=work, args=(number, names, tmp_path, dict(os.environ), results))
        for number in range(PROCESSES)
    ]
    for worker in workers:
        worker.start()
    errors = [results.get(timeout=SECONDS) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert errors == [""] * PROCESSES

    found = ledger.list_requests()
    assert len(found) == 2 * MODELS
    assert {entry.state for entry in found} == {"fulfilled"}
    events = ledger.list_events()
    fulfilled = Counter(entry.request for entry in events if entry.kind == "request-fulfilled")
    assert fulfilled == {entry.id: 1 for entry in found}
    assert len(ledger.verify_events()) == len(events)
    rows = {name: ledger.find_champion(name) for name in names}
    served = {entry.name: entry for entry in registry.list_models() if "champion" in entry.aliases}
    for name, row in rows.items():
        assert row is not None
        assert (row.version, row.forgotten) == (served[name].version, CLASSES)
        assert served[name].tags["expunge.gate"] == "passed"


def work(
    number: int, names: list[str], root: Path, environment: dict[str, str], results: object
) -> None:
    """Do the work of one process, and put its error among the results, or an empty text."""
    os.environ.update(environment)
    draw = random.Random(number)
    try:
        for name in names[number::PROCESSES]:
            registered(name, root / "made" / "none", (), None)
        ask(number, names)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            open_ = {entry.model for entry in ledger.list_requests(states=OPEN)}
            if not open_ and len(ledger.list_requests()) == 2 * len(names):
                break
            if not open_:
                time.sleep(0.2)
                continue
            with suppress(RefusedError):  # another was first, and the claim is closed
                forget(draw.choice(sorted(open_)), f"{number}-{draw.random()}", root)
        results.put("")  # type: ignore[attr-defined]
    except BaseException as error:
        results.put(f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]
        raise


def ask(number: int, names: list[str]) -> None:
    """File both requests of each model, beside a neighbour that files the same ones."""
    for place, name in enumerate(names):
        if place % (PROCESSES // 2) == number % (PROCESSES // 2):
            while not registry.has_model(name):
                time.sleep(0.1)
            for index in CLASSES:
                ledger.add_request(name, {index: f"n{index}"}, reason="asked", requester="ada")


def registered(name: str, folder: Path, forgotten: tuple[int, ...], claim: object) -> int:
    """Register a copy of a made model, and promote it."""
    kind = "forget" if forgotten else "train"
    tags = {"expunge.gate": "passed", "expunge.grade": "suppressed" if forgotten else "trained"}
    run_id = registry.attach_run(name, kind)
    made = registry.register(run_id, name, folder, tags, kind)
    version, token = claim if claim else (None, None)  # type: ignore[misc]
    promotion.promote(name, made.version, version, token)
    return made.version


def forget(name: str, run: str, root: Path) -> None:
    """Run a forget pipeline without the work between: claim, register, promote, close."""
    config = ClaimConfig(name, run, lease_seconds=600)
    fetched = root / "fetched" / run
    try:
        found = claim_requests(config, fetched)
        if not found.claimed:
            return
        gone = tuple(sorted({*load_model_info(fetched).forgotten, *found.classes}))
        folder = root / "made" / "-".join(map(str, gone))
        mine = root / "copies" / run
        shutil.copytree(folder, mine)
        write_json(mine / MODEL, {**read_json(mine / MODEL), "parent": found.reference})
        registered(name, mine, gone, (found.version, found.token))
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
        close_requests(name, run)
