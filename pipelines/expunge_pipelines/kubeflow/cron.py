"""Cron expressions as Kubeflow Pipelines reads them: six fields, seconds first."""

import re
from dataclasses import dataclass

from expunge.errors import UserError

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True)
class Field:
    """One field of an expression: its range, and names of its numbers from the lowest on."""

    name: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return the range in words."""
        named = f" or {self.names[0]} to {self.names[-1]}" if self.names else ""
        return f"{self.lowest} to {self.highest}{named}"

    def parse_word(self, word: str) -> int:
        """Return the number of a name or of digits."""
        return self.lowest + self.names.index(word) if word in self.names else int(word)


FIELDS = (
    Field("second", 0, 59),
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("day of week", 0, 6, DAYS),  # 0 is Sunday
)
WORD = r"[0-9]{1,4}|[a-z]{3}"
PART = re.compile(rf"(\*|\?|(?P<low>{WORD})(-(?P<high>{WORD}))?)(/(?P<step>[0-9]{{1,4}}))?")


def check_cron(text: str) -> str:
    """Return the cron expression with single spaces, if Kubeflow Pipelines reads it as it is meant.

    It has six fields, seconds first. Kubeflow accepts five as well, and reads the minutes as
    seconds. Numbers, names, `*`, ranges, steps and lists are those of robfig/cron v1.

    Raises:
        UserError: the count of the fields or one of them is wrong, or no day would ever match,
            which Kubeflow's controller does not survive.
    """
    parts = text.split()
    if len(parts) == len(FIELDS) - 1:
        raise UserError(
            f"cron {text!r} has five fields, and Kubeflow Pipelines would take its minutes for "
            f"seconds; expected six, seconds first: {' '.join(['0', *parts])!r}"
        )
    if len(parts) != len(FIELDS):
        raise UserError(
            f"cron {text!r} has {len(parts)} fields; expected six, separated by spaces: second, "
            "minute, hour, day of month, month, day of week, such as '0 0 2 * * *' for each night "
            "at two"
        )
    values = [_parse(part, field) for part, field in zip(parts, FIELDS, strict=True)]
    days, months = values[3], values[4]
    every_weekday = any(part[0] in "*?" for part in parts[5].split(","))
    if every_weekday and min(days) > max(LONGEST_MONTHS[month - 1] for month in months):
        raise UserError(
            f"cron {text!r} never comes: no month of {parts[4]} has a day {min(days)}; choose "
            "another day of month or month"
        )
    return " ".join(parts)


def _parse(text: str, field: Field) -> set[int]:
    """Return the numbers that the text of a field stands for."""
    found: set[int] = set()
    for part in text.lower().split(","):
        match = PART.fullmatch(part)
        words = [word for word in (match["low"], match["high"]) if word] if match else []
        known = all(word.isdigit() or word in field.names for word in words)
        day = field.name.startswith("day")
        if match is None or not known or ("?" in part and (not day or text != "?")):
            raise UserError(
                f"the {field.name} {text!r} of the cron expression is not understood; expected "
                f"{field.describe()}, a range such as {field.lowest}-{field.highest}, "
                f"*{' or ?' if day else ''}, a step such as */2, or a list of these with commas"
            )
        start = field.parse_word(words[0]) if words else field.lowest
        # As the controller reads it, 5/10 is 5-highest/10.
        open_ended = not words or (match["step"] and not match["high"])
        end = field.highest if open_ended else field.parse_word(words[-1])
        step = int(match["step"] or 1)
        if not field.lowest <= start <= end <= field.highest or step == 0:
            raise UserError(
                f"the {field.name} {text!r} of the cron expression is out of range; expected "
                f"{field.describe()}, a range from low to high, and a step of 1 or more"
            )
        found |= set(range(start, end + 1, step))
    return found
