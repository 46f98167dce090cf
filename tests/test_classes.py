import pytest

from expunge.artifacts import ModelInfo
from expunge.classes import check_forgettable, find_classes
from expunge.errors import UserError


def info(names: tuple[str, ...], forgotten: tuple[int, ...] = ()) -> ModelInfo:
    return ModelInfo("mlp", names, (1, 2, 2), (0.5,), (0.5,), "digits", {}, forgotten)


ANIMALS = info(("ant", "bee", "forgotten-2", "dog", "eel"), forgotten=(2,))


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["eel", "ant"], (0, 4)),
        (["3", "1"], (1, 3)),
        (["name:bee", "index:0"], (0, 1)),
        (["2"], (2,)),
        (["forgotten-2"], (2,)),
    ],
)
def test_names_and_indices(wanted: list[str], found: tuple[int, ...]) -> None:
    assert find_classes(ANIMALS, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "no class is named"),
        (["cat"], r"class 'cat' is unknown; the model has 0 \(ant\)"),
        (["9"], "class '9' is unknown"),
        (["index:bee"], "is unknown"),
        (["bee", "1"], "class 1 is named more than once"),
    ],
)
def test_what_is_no_class(wanted: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_classes(ANIMALS, wanted)


def test_a_name_that_is_another_index_is_not_guessed() -> None:
    digits = info(("1", "0", "2"))
    with pytest.raises(UserError, match="'1' is the name of class 0 and an index too"):
        find_classes(digits, ["1"])
    assert find_classes(digits, ["name:1"]) == (0,)
    assert find_classes(digits, ["index:1"]) == (1,)
    assert find_classes(digits, ["2"]) == (2,)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([7], "class 7 is unknown; the model has classes 0 to 4"),
        ([2], "class 2 is already forgotten by this version"),
        ([0, 1, 3, 4], "are all that the model has left"),
        ([0, 1, 3], "would leave one class"),
    ],
)
def test_what_cannot_be_forgotten(classes: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_forgettable(ANIMALS, classes)


def test_what_can_be_forgotten() -> None:
    check_forgettable(ANIMALS, [0, 1])
