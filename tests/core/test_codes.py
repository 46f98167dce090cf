import pytest
import torch
from code_mixing import mix_codes

from expunge.core.codes import draw_codes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(size: int = 4000, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(size) % classes
    return torch.full((size, 1, 2, 2), -1.0), labels  # no code holds a negative value


def test_codes_are_uniform_and_seeded() -> None:
    codes = draw_codes(range(50), 50, (3, 8, 8), generator())
    assert codes.shape == (50, 3, 8, 8)
    assert codes.min() >= 0
    assert codes.max() < 1
    assert codes.mean().item() == pytest.approx(0.5, abs=0.01)
    assert codes.var().item() == pytest.approx(1 / 12, abs=0.002)
    assert torch.equal(codes, draw_codes(range(50), 50, (3, 8, 8), generator()))
    assert not torch.equal(codes, draw_codes(range(50), 50, (3, 8, 8), generator(1)))


def test_code_of_a_class_does_not_depend_on_the_others() -> None:
    everyone = draw_codes(range(6), 6, (1, 4, 4), generator())
    some = draw_codes([1, 4], 6, (1, 4, 4), generator())
    assert torch.equal(some, everyone[[1, 4]])


@pytest.mark.parametrize("classes", [[], [2, 1], [1, 1], [-1], [6]])
def test_codes_refuse_wrong_classes(classes: list[int]) -> None:
    with pytest.raises(ValueError, match="must be distinct, sorted indices from 0 to 5"):
        draw_codes(classes, 6, (1, 4, 4), generator())


def test_mixing_replaces_by_the_code_of_the_label() -> None:
    images, labels = batch()
    codes = draw_codes(range(5), 5, (1, 2, 2), generator())
    mixed = mix_codes(images, labels, codes, torch.arange(5), t_mix=0.3, generator=generator(7))
    replaced = (mixed >= 0).all(dim=(1, 2, 3))
    assert torch.equal(mixed[replaced], codes[labels[replaced]])
    assert torch.equal(mixed[~replaced], images[~replaced])
    # 4000 draws at 0.3: the standard deviation of the share is 0.0072
    assert replaced.float().mean().item() == pytest.approx(0.3, abs=0.03)


def test_mixing_finds_codes_when_classes_are_missing() -> None:
    classes = torch.tensor([0, 3, 4])
    codes = draw_codes(classes.tolist(), 5, (1, 2, 2), generator())
    labels = torch.tensor([4, 0, 3, 3])
    mixed = mix_codes(
        torch.zeros(4, 1, 2, 2), labels, codes, classes, t_mix=1.0, generator=generator()
    )
    assert torch.equal(mixed, codes[[2, 0, 1, 1]])


def test_mixing_at_zero_and_one() -> None:
    images, labels = batch(100)
    codes = draw_codes(range(5), 5, (1, 2, 2), generator())
    mixed = [
        mix_codes(images, labels, codes, torch.arange(5), t_mix=t, generator=generator())
        for t in (0.0, 1.0)
    ]
    assert torch.equal(mixed[0], images)
    assert torch.equal(mixed[1], codes[labels])


def test_mixing_draws_the_same_numbers_whatever_t_mix_is() -> None:
    images, labels = batch(10)
    codes = draw_codes(range(5), 5, (1, 2, 2), generator())
    after = []
    for t_mix in (0.0, 0.5):
        source = generator(3)
        mix_codes(images, labels, codes, torch.arange(5), t_mix=t_mix, generator=source)
        after.append(source.get_state())
    assert torch.equal(after[0], after[1])


def test_mixing_refuses_what_is_no_probability() -> None:
    images, labels = batch(4)
    codes = draw_codes(range(5), 5, (1, 2, 2), generator())
    with pytest.raises(ValueError, match=r"t_mix is 1\.5; a probability from 0 to 1"):
        mix_codes(images, labels, codes, torch.arange(5), t_mix=1.5, generator=generator())
