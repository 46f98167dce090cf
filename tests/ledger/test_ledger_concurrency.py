"""Processes at once on one ledger, some of which die: the log shows that all went in turn.

All take requests, forget their classes, and settle them. Three die while they hold a claim, each at
another moment. The others file requests before, all of them the same ones.

No lease here is about time: on a starved machine a run takes as long as it takes. A lease is either
longer than the test or has run out already when it begins, so that anybody may take the claim away.
"""

import multiprocessing
import os
import random
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from databases import Database

from expunge import ledger, processes, states
from expunge.errors import RefusedError, UserError
from expunge.ledger import Request

pytest_plugins = ["databases"]

MODELS = ("birds", "fish", "cats", "trees")
MOMENTS = ("claimed", "promoted", "fulfilled")  # at which the first three of the processes die
DIED = 9
LASTING, LAPSED = 3600.0, -1.0  # seconds of a lease
LAPSES = 0.15  # the share of runs whose lease has run out at once
PAUSE = (
    0.03  # seconds: SQLite hands its lock to whoever happens to ask, so some have to stop asking
)
HANGS = 600.0  # seconds after which something waits for what never comes
# How a run ends that has done nothing wrong.
LOST_RACES = (
    "is being worked on by run",
    "by now and version",
    "has lost its requests",
    "only a rejected or parked one is put back",
)


@dataclass(frozen=True)
class Part:
    """What one of the processes is to do, and the others with it."""

    number: int
    models: tuple[str, ...]
    classes: int  # of each model, a request for each
    shared: int  # how many requests all may settle before those that are to die have died
    folder: Path

    @property
    def mortal(self) -> str | None:
        return dict(enumerate(MOMENTS)).get(self.number)

    @property
    def said(self) -> Path:
        return self.folder / f"said-{self.number}.txt"

    def die_at(self, moment: str) -> None:
        if moment == self.mortal:
            (self.folder / f"died-{moment}").touch()
            os._exit(DIED)

    def promotes(self, settled: int) -> bool:
        """Whether a run may succeed: something has to be left for those that are to die at it."""
        dead = len(list(self.folder.glob("died-*")))
        return self.mortal is not None or dead == len(MOMENTS) or settled < self.shared


def settle_lost(model: str) -> None:
    for claim in ledger.list_lost_claims(model):
        ledger.close_claim(claim.run, ledger.INTERRUPTED)


def choose(known: Sequence[Request], rng: random.Random) -> list[str]:
    """Choose some requests by name, and now and then none, for whatever is pending."""
    there = [entry.id for entry in known if entry.state in (states.PENDING, states.CLAIMED)]
    return rng.sample(there, min(len(there), rng.choice((0, 1, 2, 3))))


def work_once(part: Part, model: str, only: Sequence[str], luck: float, rng: random.Random) -> None:
    """One run as the pipeline's steps make it: reconcile, claim, gate, promote, settle, close.

    Nobody knows that a run is dead which has neither a holder nor a lease that ends.
    """
    holder = rng.choice((None, processes.name_this_process()))
    lapses = rng.random() < LAPSES or (part.mortal is not None and holder is None)
    settle_lost(model)
    ledger.fulfil(model)  # or what a run promoted that died before this stays open for good
    base = ledger.find_champion(model)
    assert base is not None
    run = f"run-{uuid.uuid4().hex}"
    claim = ledger.claim_requests(
        model,
        run,
        base_version=base.version,
        classes=part.classes + 2,
        forgotten=base.forgotten,
        lease_seconds=LAPSED if lapses else LASTING,
        holder=holder,
        only=only,
    )
    if claim is None:
        time.sleep(PAUSE)
        return
    part.die_at("claimed")
    outcome = ledger.FAILED
    try:
        if luck < 0.1:
            ledger.note_verdict(run, "rejected", ["budget"], "mlflow-1")
        elif luck < 0.15:
            ledger.note_verdict(run, "untrustworthy", [], "mlflow-1")
        elif luck > 0.25:
            ledger.change_champion(
                model,
                1 + claim.token,
                forgotten={*base.forgotten, *claim.classes},
                grade="suppressed",
                expected=claim.base_version,
                token=claim.token,
            )
            part.die_at("promoted")
            ledger.fulfil(model)
            part.die_at("fulfilled")
    except RefusedError:
        outcome = ledger.OVERTAKEN
        raise
    finally:
        ledger.close_claim(run, outcome, error="bad luck", attempts=3)


def work(part: Part, rng: random.Random) -> None:
    """Take runs until every request there will be is settled."""
    end = time.monotonic() + HANGS
    settled = dict.fromkeys(part.models, 0)
    while sum(settled.values()) < part.classes * len(part.models):
        assert time.monotonic() < end, f"{settled} are settled"
        model = rng.choice([name for name in part.models if settled[name] < part.classes])
        known = ledger.list_requests(model)
        settled[model] = sum(entry.state == states.FULFILLED for entry in known)
        promotes = part.promotes(sum(settled.values()))
        luck = rng.random() if promotes else rng.uniform(0, 0.25)
        if not promotes:
            time.sleep(PAUSE)  # a run that cannot succeed leaves the others their turn
        try:
            work_once(part, model, choose(known, rng), luck, rng)
            for entry in known:
                if entry.state in (states.REJECTED, states.PARKED):
                    ledger.retry_request(entry.id)
        except (RefusedError, UserError) as error:
            with part.said.open("a") as file:
                print(f"{type(error).__name__}: {error}", file=file)


def file_all(part: Part, rng: random.Random) -> None:
    """File a request for each class of each model, in an order of its own."""
    wanted = [(model, index) for model in part.models for index in range(part.classes)]
    rng.shuffle(wanted)
    for model, index in wanted:
        added = ledger.add_request(model, {index: f"name-{index}"}, reason="r", requester="ann")
        assert len(added.requests) == 1


def take_part(part: Part, environ: dict[str, str], start: Barrier) -> None:
    """Do the work of one of the processes, and write down an error that ends it."""
    os.environ.update(environ)
    rng = random.Random(part.number)
    try:
        start.wait(60)
        if part.mortal is None:
            file_all(part, rng)
        work(part, rng)
    except BaseException:
        with part.said.open("a") as file:
            print(traceback.format_exc(), file=file)
        raise


def replay_log(models: Sequence[str]) -> None:
    """Replay the log: who held what when, and which champion followed which."""
    tokens: list[int] = []
    closed: dict[int, str] = {}
    holder: dict[str, int | None] = {}
    fulfilled: Counter[str] = Counter()
    champions = dict.fromkeys(models, 1)
    erased: dict[str, set[int]] = {model: set() for model in models}
    for event in ledger.list_events():
        body, request = event.body, event.request or ""
        if event.kind == "request-added":
            assert request not in holder
            holder[request] = None
        elif event.kind == "request-claimed":
            assert holder[request] is None, "a request that another run held was claimed"
            assert fulfilled[request] == 0
            assert body["token"] not in closed
            holder[request] = body["token"]
            if body["token"] not in tokens:
                tokens.append(body["token"])
        elif event.kind == "request-fulfilled":
            assert body["version"] == champions[event.model]
            holder[request] = None
            fulfilled[request] += 1
        elif event.kind in ("request-put-back", "request-set-apart", "request-rejected",
                            "request-parked"):  # fmt: skip
            holder[request] = None
        elif event.kind == "champion-promoted" and body["previous"] is not None:
            assert body["token"] in tokens
            assert body["token"] not in closed, "a run promoted that had lost its claim"
            assert body["previous"] == champions[event.model]
            assert erased[event.model] <= set(body["forgotten"])
            champions[event.model] = body["version"]
        elif event.kind == "class-erased":
            assert body["class_index"] not in erased[event.model]
            erased[event.model].add(body["class_index"])
        elif event.kind == "claim-closed":
            assert body["token"] not in closed
            closed[body["token"]] = body["outcome"]
    assert tokens == sorted(tokens)
    assert set(closed) == set(tokens)
    assert "fulfilled" in closed.values()
    assert set(holder.values()) == {None}
    assert set(fulfilled.values()) == {1}
    assert set(fulfilled) == set(holder)
    for model, version in champions.items():
        found = ledger.find_champion(model)
        assert found is not None
        assert (found.version, set(found.forgotten)) == (version, erased[model])


def check_all_went_in_turn(
    database: Database, folder: Path, *, models: Sequence[str], classes: int, shared: int, live: int
) -> None:
    """Run three processes that die and `live` that do not, and check what they leave."""
    for model in models:
        ledger.change_champion(model, 1, forgotten=(), grade="trained", expected=None)
    names = ("EXPUNGE_HOME", "EXPUNGE_DATABASE_URL")
    environ = {name: os.environ[name] for name in names if name in os.environ}
    context = multiprocessing.get_context("forkserver")  # which imports once, for all of them
    context.set_forkserver_preload(["expunge.ledger", "psycopg", "pytest"])
    start = context.Barrier(len(MOMENTS) + live)
    parts = [
        Part(number, tuple(models), classes, shared, folder)
        for number in range(len(MOMENTS) + live)
    ]
    started = [
        context.Process(target=take_part, args=(part, environ, start), daemon=True)
        for part in parts
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(HANGS + 60)
    told = [line for path in folder.glob("said-*") for line in path.read_text().splitlines()]
    unexpected = [line for line in told if not any(text in line for text in LOST_RACES)]
    assert unexpected == []
    assert [process.exitcode for process in started] == [DIED] * len(MOMENTS) + [0] * live
    for model in models:
        settle_lost(model)  # of those that died with nothing left to settle
    assert database.execute("SELECT token FROM claims WHERE state = 'active'") == []
    found = ledger.list_requests()
    assert {entry.state for entry in found} == {states.FULFILLED}
    assert sorted((entry.model, *entry.classes) for entry in found) == sorted(
        (model, index) for model in models for index in range(classes)
    )
    assert ledger.list_champion_models() == sorted(models)
    replay_log(models)
    assert len(ledger.verify_events()) == len(ledger.list_events())


def test_processes_take_turns(database: Database, tmp_path: Path) -> None:
    check_all_went_in_turn(database, tmp_path, models=MODELS[:2], classes=4, shared=0, live=2)


@pytest.mark.slow
def test_many_requests_and_processes(database: Database, tmp_path: Path) -> None:
    check_all_went_in_turn(database, tmp_path, models=MODELS, classes=50, shared=50, live=5)
