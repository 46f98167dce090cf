import pytest

from expunge.data.images import ImageFile
from expunge.data.layout import Tree, arrange
from expunge.errors import DataError

BOTH = ("train", "test")


def tree(*paths: str) -> Tree:
    built = Tree("/data")
    for path in paths:
        parts = tuple(path.strip("/").split("/"))
        if path.endswith("/"):
            built.folders.add(parts)
        else:
            built.files[parts] = ImageFile(f"/data/{path}", lambda: b"")
    return built


GOOD = ("train/b/2.png", "train/b/10.png", "train/a/1.png", "test/a/1.png", "test/b/1.png")


def test_classes_and_files_are_sorted_by_name() -> None:
    arranged = arrange(tree(*GOOD), BOTH)
    assert arranged.class_names == ("a", "b")
    assert [(file.name, label) for file, label in arranged.splits["train"]] == [
        ("/data/train/a/1.png", 0),
        ("/data/train/b/10.png", 1),
        ("/data/train/b/2.png", 1),
    ]


def test_hidden_files_and_other_folders_are_ignored() -> None:
    left = (
        "train/.DS_Store", "train/a/Thumbs.db", "train/.git/x/y/z", "test/a/._1.png",
        "train/desktop.ini", "README", "val/a/1.png",
    )  # fmt: skip
    assert arrange(tree(*GOOD, *left), BOTH).splits.keys() == {"train", "test"}
    assert len(arrange(tree(*GOOD, *left), BOTH).splits["train"]) == 3


def test_a_split_that_is_not_read_may_be_absent() -> None:
    only = arrange(tree("test/a/1.png", "test/b/1.png"), ("test",))
    assert only.class_names == ("a", "b")
    assert list(only.splits) == ["test"]


def test_one_top_level_folder_is_looked_through() -> None:
    below = tree(
        *(f"set/{path}" for path in GOOD), "set/", "set/train/", "__MACOSX/set/x"
    ).drop_top()
    assert below.origin == "/data/set"
    assert arrange(below, BOTH).class_names == ("a", "b")
    assert tree(*GOOD).drop_top().origin == "/data"


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (GOOD[:3], r"^/data has no class folders under test/; expected test/<class>/<image file>$"),
        (GOOD[3:], r"^/data has no class folders under train/; expected train/<class>"),
        ((*GOOD, "train/c/"), r"^/data/train/c holds no image; add images or remove the folder$"),
        ((*GOOD, "train/c/.hidden"), r"^/data/train/c holds no image"),
        ((*GOOD, "test/b2/"), r"^/data/test/b2 holds no image"),
        (GOOD[:4], r"^/data/test/b does not exist, though train/b does; both splits need the same"),
        ((*GOOD, "test/c/1.png"), r"^/data/train/c does not exist, though test/c does"),
        (("train/a/1.png", "test/a/1.png"), r"^/data/train holds one class only \(a\); .* two"),
        ((*GOOD, "train/1.png"), r"^/data/train/1.png lies at the wrong depth; expected train/<cl"),
        ((*GOOD, "test/a/b/1.png"), r"^/data/test/a/b/1.png lies at the wrong depth"),
    ],
)
def test_a_wrong_layout_names_the_place(paths: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        arrange(tree(*paths), BOTH)
