"""What was written: found by the classes that it remembers, until it is gone."""

from databases import MODEL, Database

from expunge import ledger

pytest_plugins = ["databases"]


def addresses(*classes: int, model: str = MODEL) -> list[str]:
    return [entry.address for entry in ledger.list_remembering(model, classes)]


def test_what_is_written_is_noted(database: Database) -> None:
    digest = f"sha256:{'a' * 64}"
    ledger.note_written(
        "models:/birds/3", "version", {7, 2}, digest=digest, model=MODEL, run="run-1"
    )
    ledger.note_written("/data/birds", "dataset", [2])
    version, data = ledger.list_remembering(MODEL, [2])
    assert (version.address, version.kind, version.classes) == (
        "models:/birds/3",
        "version",
        (2, 7),
    )
    assert (version.digest, version.model, version.run) == (digest, MODEL, "run-1")
    assert version.removed_at is None
    assert version.written_at[:2] == "20"
    assert (data.digest, data.model, data.run) == (None, None, None)


def test_what_holds_a_class(database: Database) -> None:
    ledger.note_written("/a", "model", [1, 2], model=MODEL)
    ledger.note_written("/b", "model", [3], model=MODEL)
    ledger.note_written("/c", "dataset", [1, 12])
    ledger.note_written("/d", "model", [1], model="fish")
    ledger.note_written("/e", "report", [], model=MODEL)
    assert addresses(1) == ["/a", "/c"]
    assert addresses(3, 2) == ["/a", "/b"]
    assert addresses(1, model="fish") == ["/c", "/d"]
    assert addresses(4) == addresses() == []
    assert addresses(12, model="cats") == ["/c"]


def test_written_again_at_one_address(database: Database) -> None:
    ledger.note_written("/a", "model", [1, 2], model=MODEL)
    ledger.note_written("/a/b", "model", [1], model=MODEL)
    ledger.note_written("/a", "model", [2], model=MODEL, digest="sha256:b")
    assert addresses(1) == ["/a/b"]
    assert [entry.digest for entry in ledger.list_remembering(MODEL, [2])] == ["sha256:b"]
    rows = database.execute("SELECT address, removed_at FROM written ORDER BY id")
    assert [(address, removed is None) for address, removed in rows] == [
        ("/a", False),
        ("/a/b", True),
        ("/a", True),
    ]


def test_what_is_removed_goes_with_all_in_it(database: Database) -> None:
    for address in ("/a", "/a/b", "/a/b/c", "/ab", "/a.txt", "/x/a/b"):
        ledger.note_written(address, "model", [1])
    assert ledger.note_removed("/a") == 3
    assert addresses(1) == ["/ab", "/a.txt", "/x/a/b"]
    assert ledger.note_removed("/a") == 0
    assert ledger.note_removed("/x/") == 1
    assert ledger.note_removed("/never") == 0
    ledger.note_written("/a/b", "model", [1])
    assert addresses(1) == ["/ab", "/a.txt", "/a/b"]


# Of the names that LIKE takes for a pattern, or for the same in another case.
OTHERS = [
    ("/data/a_b", "/data/aXb"),
    ("/data/a%b", "/data/aXXb"),
    ("/data/%", "/data/whole"),
    ("/data/a\\b", "/data/ab"),
    ("/data/a'b", "/data/ab"),
    ("/data/Run", "/data/run"),
    ("/data/Ä", "/data/ä"),
    ("s3://bucket/a:b", "s3://bucket/a"),
]


def test_a_folder_of_another_name_stays(database: Database) -> None:
    for number, (folder, other) in enumerate(OTHERS):
        for address in (folder, f"{folder}/c", other, f"{other}/c"):
            ledger.note_written(address, "model", [1], model=f"birds-{number}")
        assert ledger.note_removed(folder) == 2
        assert addresses(1, model=f"birds-{number}") == [other, f"{other}/c"]
        assert ledger.note_removed(other) == 2
