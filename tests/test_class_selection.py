"""A request names the classes it means, and one that cannot be fulfilled is refused at once."""

import dataclasses
from collections.abc import Sequence

import pytest

from expunge.class_selection import check_forgettable, find_classes
from expunge.errors import UserError
from expunge.formats.model import ModelInfo

# "1" and "0" are names of other classes than those of these indices; "3" names class 3 itself
INFO = ModelInfo(
    arch="mlp",
    class_names=("cat", "dog", "1", "3", "0", "forgotten-5", "name:dog"),
    input_shape=(1, 4, 4),
    mean=(0.5,),
    std=(0.25,),
    source="tiny",
    data_digests={},
    forgotten=(5,),
)


def with_names(*names: str, forgotten: tuple[int, ...] = ()) -> ModelInfo:
    return dataclasses.replace(INFO, class_names=names, forgotten=forgotten)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (["cat"], (0,)),
        (["2"], (2,)),
        (["dog", "cat"], (0, 1)),
        (["6", "dog", "2"], (1, 2, 6)),
        ([" dog "], (1,)),
        (["3"], (3,)),  # the name and the index of the same class
        (["index:1"], (1,)),
        (["name:1"], (2,)),
        (["index:0", "name:0"], (0, 4)),
        (["name:cat"], (0,)),
        (["name:dog"], (1,)),
        (["name:name:dog"], (6,)),
        (["5"], (5,)),  # forgotten: found, and then refused with a reason
        (["forgotten-5"], (5,)),
    ],
)
def test_classes_are_found_by_name_and_by_index(
    wanted: Sequence[str], found: tuple[int, ...]
) -> None:
    assert find_classes(INFO, wanted) == found


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ([], "no class is named; expected indices or names, such as --classes 3,5"),
        (["cat", "0x0"], "class '0x0' is unknown; the model has 0 (cat), 1 (dog), 2 (1)"),
        (["7"], "class '7' is unknown"),
        (["-1"], "class '-1' is unknown"),
        ([""], "class '' is unknown"),
        (["index:cat"], "class 'index:cat' is unknown"),
        (["index:7"], "class 'index:7' is unknown"),
        (["name:6"], "class 'name:6' is unknown"),
        (["name:forgotten-5"], "class 'name:forgotten-5' is unknown"),
        (["cat", "index:0"], "class 0 is named more than once; name each class once"),
        (["2", "2"], "class 2 is named more than once; name each class once"),
        (["1"], "'1' is the name of class 2 and an index too; write name:1 or index:1"),
    ],
)
def test_what_is_not_one_class_is_refused(wanted: Sequence[str], text: str) -> None:
    with pytest.raises(UserError) as raised:
        find_classes(INFO, wanted)
    assert str(raised.value).startswith(text)


def test_forgotten_names_are_not_among_the_known() -> None:
    with pytest.raises(UserError) as raised:
        find_classes(INFO, ["owl"])
    assert "forgotten" not in str(raised.value)
    assert "6 (name:dog)" in str(raised.value)


def test_a_long_list_of_known_classes_is_cut() -> None:
    info = with_names(*(f"class {index}" for index in range(30)))
    with pytest.raises(UserError, match=r"19 \(class 19\) \.\.\.$"):
        find_classes(info, ["owl"])


def test_a_name_that_two_classes_have_is_refused() -> None:
    """ImageNet has two cranes, a bird and a machine; a guess would erase the wrong one."""
    info = with_names("crane", "owl", "crane", "crane", forgotten=(3,))
    for text in ("crane", "name:crane"):
        with pytest.raises(UserError, match=r"'.*crane' is the name of classes 0 and 2; write ind"):
            find_classes(info, [text])
    assert find_classes(info, ["2"]) == (2,)


@pytest.mark.parametrize("classes", [(0,), (0, 1, 2, 3), ()])
def test_what_leaves_two_classes_can_be_forgotten(classes: tuple[int, ...]) -> None:
    check_forgettable(INFO, classes)


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ((7,), "class 7 is unknown; the model has classes 0 to 6"),
        ((-1,), "class -1 is unknown; the model has classes 0 to 6"),
        ((0, 5), "class 5 is already forgotten by this version; there is nothing to do"),
        ((0, 1, 2, 3, 4, 6), "classes [0, 1, 2, 3, 4, 6] are all that the model has left;"),
        ((6, 1, 2, 3, 4), "forgetting [1, 2, 3, 4, 6] would leave one class, and a classifier"),
    ],
)
def test_what_cannot_be_forgotten_is_refused(classes: tuple[int, ...], text: str) -> None:
    with pytest.raises(UserError) as raised:
        check_forgettable(INFO, classes)
    assert str(raised.value).startswith(text)


def test_a_model_of_two_classes_keeps_both() -> None:
    with pytest.raises(UserError, match="would leave one class"):
        check_forgettable(with_names("cat", "dog"), (0,))
