"""Settings as JSON, and what a person is told of each: what `expunge.config` builds on."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, get_args, get_origin, get_type_hints

from expunge.errors import UserError

# How an error names what a field takes.
_EXPECTED: Mapping[Any, str] = {int: "a whole number", float: "a number", str: "a text"}


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is not one of those known.

    Raises:
        UserError: with those that are.
    """
    if value not in known:
        raise UserError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value below `low` or above `high`.

    Raises:
        UserError: with both ends.
    """
    # Written so that NaN, which compares with nothing, is refused too.
    if not low <= value <= high:
        raise UserError(f"{name} is {value}; expected a value from {low:g} to {high:g}")


def restore(name: str, kind: Any, value: Any) -> Any:
    """Return a value out of JSON as the field's own type: int, float, str, or a tuple of one.

    Raises:
        UserError: it is of another kind.
    """
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{name} is {value!r}; expected a list")
        item = get_args(kind)[0]
        return tuple(restore(name, item, part) for part in value)
    # In Python True is 1, and nobody who wrote true meant a number.
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and is_number and float(value).is_integer():
        return int(value)
    if kind is float and is_number:
        return float(value)
    if kind is str and isinstance(value, str):
        return value
    raise UserError(f"{name} is {value!r}; expected {_EXPECTED[kind]}")


@dataclass(frozen=True)
class Knob:
    """What a person is told of a setting, and the values that it may have."""

    help: str
    option: str = ""  # of the command, where it is not called like the field
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that the setting does not take.

        Raises:
            UserError: with what it takes.
        """
        if self.choices:
            check_choice(name, value, self.choices)
        if self.low is not None and self.high is not None:
            check_range(name, value, self.low, self.high)


def describe(help_text: str, **more: Any) -> dict[str, Knob]:
    """Return the metadata of a dataclass's field: its `Knob`."""
    return {"knob": Knob(help_text, **more)}


@dataclass(frozen=True)
class JsonSettings:
    """Settings that travel between the steps as one JSON object."""

    title: ClassVar[str] = "settings"  # how an error names the object

    def to_json(self, only: Collection[str] | None = None) -> dict[str, Any]:
        """Return the fields as JSON, or those in `only`; `from_json` reads it."""
        values = {key: getattr(self, key) for key in list_fields(type(self))}
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if only is None or key in only
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the settings in a JSON object; a field that is left out has its default.

        kfp's local runner turns every number into a float, also inside of lists. Here they become
        again what the field says.

        Raises:
            UserError: a field is unknown, missing, or of the wrong kind, or has a wrong value.
        """
        kinds = get_type_hints(cls)
        known = list_fields(cls)
        if unknown := sorted(set(document) - set(known)):
            raise UserError(
                f"the {cls.title} has no setting {', '.join(unknown)}; expected some of "
                f"{', '.join(known)}"
            )
        for key, setting in known.items():
            # A form is prefilled with an empty text where there is no default.
            if setting.default is dataclasses.MISSING and not document.get(key):
                raise UserError(f"the {cls.title} has no {key}; give it a value")
        return cls(**{key: restore(key, kinds[key], value) for key, value in document.items()})

    @classmethod
    def list_defaults(cls) -> dict[str, Any]:
        """Return every field with its default, as JSON: what a form is filled with.

        A field that has no default is an empty text, for a person to see that it is there.
        """
        return {
            key: ""
            if setting.default is dataclasses.MISSING
            else list(setting.default)
            if isinstance(setting.default, tuple)
            else setting.default
            for key, setting in list_fields(cls).items()
        }


def list_fields(settings: type[JsonSettings]) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a settings class by their names, in their order."""
    return {setting.name: setting for setting in dataclasses.fields(settings)}
