"""Cron expressions that Kubeflow Pipelines reads as they are meant, and others."""

import pytest

from expunge.errors import UserError
from expunge_pipelines.kubeflow.cron import check_cron

NIGHTLY = "0 0 2 * * *"


@pytest.mark.parametrize(
    "text",
    [
        NIGHTLY,
        "59 59 23 31 12 6",
        "*/10 0-30 8-18/2 1,15 jan-mar MON-FRI",
        "0 5/10 * ? * 1",
        "0 0 0 29 2 *",
        "0 0 0 ? feb sun,Wed",
        "0 0 0 31 2 mon",  # the controller takes either day, and Mondays come
        "0 0 0 30,31 2,3 *",
    ],
)
def test_a_cron_expression_that_kubeflow_reads_as_it_is_meant(text: str) -> None:
    assert check_cron(text) == text
    assert check_cron(f" {text} ".replace(" ", "\t\n ")) == text


def test_five_fields_get_their_seconds() -> None:
    said = (
        r"cron ' 0 2 \* .* has five fields, .* take its minutes for seconds; .* '0 0 2 \* \* \*'$"
    )
    with pytest.raises(UserError, match=said):
        check_cron(" 0 2 *  * *")


@pytest.mark.parametrize("text", ["", "@daily", "@every 1h", "0 0 2 *", "0 0 2 * * * 2030"])
def test_another_count_of_fields(text: str) -> None:
    count = len(text.split())
    with pytest.raises(UserError, match=rf"has {count} fields; expected six, separated by spaces"):
        check_cron(text)


# By field, in their order: what is not understood, and what is out of range.
WRONG = {
    "second": ("x 0;0 /5", "60 */0"),
    "minute": ("? 1/2/3 1/ 1-", "60 50-70 0-9/0"),
    "hour": (f"-1 1-2-3 ٣ $(id) {'9' * 5000}", "24 5-3 30/5"),
    "day of month": ("*-5 ?/2 ?,1 L", "0 32"),
    "month": ("mon january", "0 13 dec-jan"),
    "day of week": ("1,,3 5#2 jan", "7 fri-mon"),
}
EXPECTED = {"hour": "0 to 23", "month": "1 to 12 or jan to dec", "day of week": "0 to 6 or sun to"}


@pytest.mark.parametrize("kind", [0, 1], ids=["syntax", "range"])
@pytest.mark.parametrize("field", WRONG)
def test_a_field_that_is_wrong_is_named(field: str, kind: int) -> None:
    said = ("is not understood; expected ", "is out of range; expected ")[kind]
    for value in WRONG[field][kind].split():
        parts = NIGHTLY.split()
        parts[list(WRONG).index(field)] = value
        with pytest.raises(UserError) as error:
            check_cron(" ".join(parts))
        start = f"the {field} {value!r} of the cron expression {said}{EXPECTED.get(field, '')}"
        assert str(error.value).startswith(start)


@pytest.mark.parametrize(("day", "months", "last"), [(30, "2", "*"), (31, "4,jun", "?")])
def test_a_day_that_never_comes(day: int, months: str, last: str) -> None:
    with pytest.raises(UserError, match=f"never comes: no month of {months} has a day {day}; choo"):
        check_cron(f"0 0 2 {day} {months} {last}")
