"""The key that finds an oracle again, its seeds, and the training that its model asks for."""

import dataclasses
import hashlib
from typing import Any

import pytest

from expunge.class_selection import find_classes
from expunge.config import AFTERWARDS, TrainConfig
from expunge.errors import RefusedError, UserError
from expunge.formats.model import ModelInfo
from expunge.oracles import (
    build_oracle_config,
    check_enough_oracles,
    check_model_name,
    check_same_recipe,
    compute_recipe_key,
    derive_oracle_seeds,
    spell_request,
)

# A model does not say what was done after its last step: its weights do not depend on it.
SETTINGS = {
    key: value
    for key, value in dataclasses.asdict(
        TrainConfig(arch="mlp", epochs=3, precision="fp32", seed=7)
    ).items()
    if key not in AFTERWARDS
}


def info(forgotten: tuple[int, ...] = (), **changed: Any) -> ModelInfo:
    """Describe a trained model of five classes; what is no field of `ModelInfo` is a setting."""
    own = {key: changed.pop(key) for key in list(changed) if key in ModelInfo.__dataclass_fields__}
    base = ModelInfo(
        arch="mlp",
        class_names=tuple("abcde"),
        input_shape=(1, 4, 4),
        mean=(0.5,),
        std=(0.25,),
        source="digits",
        data_digests={"train": "a", "test": "b"},
        forgotten=forgotten,
        settings={**SETTINGS, "without": sorted(forgotten), **changed},
    )
    return dataclasses.replace(base, **own)


def test_a_model_and_its_oracle_have_one_key() -> None:
    key = compute_recipe_key(info(), [3, 1])
    assert key == compute_recipe_key(info(), [1, 3]) == compute_recipe_key(info((1, 3), seed=1001))
    assert key == compute_recipe_key(info((3,)), [1]), (
        "what was forgotten before is left out as well"
    )
    assert key == compute_recipe_key(info((3,)), [1, 3]), (
        "a class may be named that is forgotten already"
    )
    assert key == compute_recipe_key(info(processes=4, nodes=2, workers=0, seed=9), [1, 3])
    without_seed = {key: value for key, value in SETTINGS.items() if key != "seed"}
    assert key == compute_recipe_key(dataclasses.replace(info((1, 3)), settings=without_seed))


@pytest.mark.parametrize(
    "changed",
    [
        {"epochs": 4},
        {"precision": "bf16"},
        {"weights": "sha256:1"},
        {"arch": "resnet20"},
        {"mean": (0.4,)},
        {"input_shape": (1, 8, 8)},
        {"data_digests": {"train": "c", "test": "b"}},
        {"data_digests": {"train": "a", "test": "c"}},
    ],
)
def test_whatever_else_differs_gives_another_key(changed: dict[str, Any]) -> None:
    assert compute_recipe_key(info(**changed), [1]) != compute_recipe_key(info(), [1])


def test_other_classes_give_another_key() -> None:
    assert len({compute_recipe_key(info(), classes) for classes in ([], [1], [2], [1, 2])}) == 4


def test_weights_count_by_their_digest() -> None:
    """A file with torchvision's tensors is as good as their name."""
    named, filed = info(weights="IMAGENET1K_V1 sha256:1"), info(weights="sha256:1")
    assert compute_recipe_key(named, [1]) == compute_recipe_key(filed, [1])


def test_seeds_follow_from_the_key() -> None:
    """They are the same whether or not the version still says the seed that it was trained with."""
    key = compute_recipe_key(info(), [1])
    digests = [hashlib.sha256(f"{key}/{number}".encode()).digest() for number in (1, 2)]
    expected = tuple(int.from_bytes(digest[:4]) & (2**31 - 1) for digest in digests)
    assert derive_oracle_seeds(key, 2) == expected
    hundred = derive_oracle_seeds(key, 100)
    assert hundred[:2] == expected
    assert len(set(hundred)) == 100
    assert all(1000 < seed < 2**31 for seed in hundred)
    assert not {*hundred} & {*derive_oracle_seeds(compute_recipe_key(info(), [2]), 100)}


def test_an_oracle_is_trained_as_its_model_was() -> None:
    config = build_oracle_config(info((3,)), [1])
    (seed,) = derive_oracle_seeds(compute_recipe_key(info(), [1, 3]), 1)
    assert config == TrainConfig(
        arch="mlp", epochs=3, precision="fp32", seed=seed, without=(1, 3), statistics=0.0
    )


def test_a_model_from_before_there_were_nodes() -> None:
    older = {key: value for key, value in SETTINGS.items() if key != "nodes"}
    known = dataclasses.replace(info(), settings=older)
    assert compute_recipe_key(known, [1]) == compute_recipe_key(info(), [1])
    assert build_oracle_config(known, [1]) == build_oracle_config(info(), [1])


def test_pretrained_weights_come_by_name_or_from_the_file_that_is_given() -> None:
    named = info(weights="IMAGENET1K_V1 sha256:1")
    assert build_oracle_config(named, [1]).weights == "IMAGENET1K_V1"
    assert build_oracle_config(named, [1], "own.pth").weights == "own.pth"
    filed = info(weights="sha256:1")
    assert build_oracle_config(filed, [1], "own.pth").weights == "own.pth"
    with pytest.raises(UserError, match=r"a file of pretrained weights \(sha256:1\); name that"):
        build_oracle_config(filed, [1])
    with pytest.raises(UserError, match=r"--weights is 'own\.pth', and the model was trained with"):
        build_oracle_config(info(), [1], "own.pth")


def test_a_model_that_cannot_have_oracles() -> None:
    with pytest.raises(UserError, match="fine-tuned from an existing classifier"):
        build_oracle_config(info(init_from="sha256:1"), [1])
    with pytest.raises(UserError, match=r"does not say how it was trained \(its arch, augment"):
        build_oracle_config(dataclasses.replace(info(), settings={}), [1])


def test_another_recipe_is_no_oracle() -> None:
    check_same_recipe(info(), info((3,), seed=1001))
    check_same_recipe(info((3,)), info((1, 3), seed=1001))
    expected = "settings epochs is 9, data train is 'c', and the model that it is for has 3, 'a'"
    with pytest.raises(UserError, match=expected):
        check_same_recipe(info(), info((3,), epochs=9, data_digests={"train": "c", "test": "b"}))
    with pytest.raises(UserError, match=r"without is \[1\], and .* has \[1, 3\]"):
        check_same_recipe(info((3,)), info((1,)))


def test_grade_forgotten_needs_four() -> None:
    check_enough_oracles("shapes", info(), [3, 4], 0, "suppressed")
    check_enough_oracles("shapes", info(), [3, 4], 4, "forgotten")
    expected = "without classes 3,4 and there are 3; make them with `expunge oracles shapes --cl"
    with pytest.raises(RefusedError, match=expected + "asses 3,4`$"):
        check_enough_oracles("shapes", info(), [3, 4], 3, "forgotten")
    with pytest.raises(RefusedError, match=expected + "asses 3,4 --base-version 2`$"):
        check_enough_oracles("shapes", info(), [3, 4], 3, "forgotten", 2)


def test_a_request_means_the_same_classes_when_it_is_typed() -> None:
    """A class that is named as another's index is written so that nothing is ambiguous."""
    odd = info(class_names=("a", "3", "2", "d", "0"))
    assert spell_request("shapes", odd, [1, 2, 3]) == "shapes --classes 1,2,index:3"
    listed = spell_request("shapes", odd, [0, 3], 7).split()
    assert listed == ["shapes", "--classes", "index:0,index:3", "--base-version", "7"]
    assert find_classes(odd, listed[2].split(",")) == (0, 3)
    gone = info((4,), class_names=("a", "b", "c", "d", "0"))
    assert spell_request("shapes", gone, [0]) == "shapes --classes 0"


def test_a_name_of_oracles_is_no_model() -> None:
    assert check_model_name("shapes") == "shapes"
    with pytest.raises(UserError, match=r"'shapes-oracles' holds oracles; name .* for: 'shapes'"):
        check_model_name("shapes-oracles")
    assert check_model_name("shapes-oracles", oracles=True) == "shapes-oracles"


@pytest.mark.parametrize("oracles", [False, True])
@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "a" * 101, "a" * 101 + "-oracles", "é"])
def test_a_name_that_mlflow_does_not_take(name: str, oracles: bool) -> None:
    with pytest.raises(UserError, match="is not usable; expected up to 100 letters, digits"):
        check_model_name(name, oracles=oracles)
    longest = "a" * 100
    assert check_model_name(longest) == longest
    assert check_model_name(f"{longest}-oracles", oracles=True) == f"{longest}-oracles"
