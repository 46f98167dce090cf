import pytest

from expunge.data.pool import map_in_parallel


@pytest.mark.parametrize("count", [0, 1, 64, 1000])
def test_results_come_in_order(count: int) -> None:
    assert map_in_parallel(lambda x: x * x, range(count), threads=4) == [
        x * x for x in range(count)
    ]


def test_the_first_failure_in_order_is_raised() -> None:
    def fail(item: int) -> None:
        if item in (70, 400):
            raise KeyError(item)

    with pytest.raises(KeyError, match="70"):
        map_in_parallel(fail, range(1000), threads=4)
