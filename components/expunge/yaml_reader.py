"""YAML files of settings, read into dataclasses.

A dataclass is the schema of a file: pydantic holds the file against its annotations, in which
`Section` stands for a dataclass inside another and a `Check` for a rule of ours. Every mistake is
one line with the file, the line, the key, the value and what is expected. pydantic is imported only
when a file is read, since its import takes as long as all of `--help`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_args

from expunge.errors import UserError

if TYPE_CHECKING:
    from yaml import Node

T = TypeVar("T")
Place = tuple[str | int, ...]  # keys and numbers of entries, from the top of a file

LONGEST = 80  # characters of a value in a message
SECRET_KEY = re.compile(
    r"passw|credential|_token|^token|(api|access|private|secret)_?key|connection_string",
    re.IGNORECASE,
)
SECRET_VALUE = re.compile(
    r"(?:[^\s/@:]+|//):[^\s/@]+@(?!(?:sha|md)\d+:)"  # user:password@, as in an address
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # an AWS access key
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
)
# What pydantic expects, in our words, by its name for the mistake. All else is a `Check`.
EXPECTED = {"tuple_type": "a list", "dict_type": "keys and values"}


class MisfitError(ValueError):
    """A mistake at a key of a section, or below it, that its value alone does not show."""

    def __init__(self, message: str, *place: str | int) -> None:
        super().__init__(message)
        self.place = place


class Check:
    """A rule, to stand in `Annotated`: it returns a value as the settings hold it.

    It raises `ValueError` with what is expected of a value that breaks it.
    """

    def __init__(self, rule: Callable[[Any], Any]) -> None:
        self.rule = rule

    def __get_pydantic_core_schema__(self, *_: Any) -> Any:
        """Return a schema of this rule alone, without pydantic's own conversions."""
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self.rule)


class Mapped:
    """A dataclass with its fields as keys, to stand in `Annotated`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return pydantic's schema of the dataclass, behind a look at its keys."""
        from pydantic_core import core_schema

        part, *none = get_args(source) or [source]  # `none` is there in `Part | None`
        known = sorted(field.name for field in dataclasses.fields(part))

        def read(value: Any) -> Any:
            if none and value is False:
                return None
            if not isinstance(value, dict | None):
                hint = ", or off without quotes" if none else ""
                raise ValueError(f"keys and values{hint}")  # noqa: TRY004 (pydantic's convention)
            for key in value or {}:
                if key not in known:
                    raise MisfitError(f"is unknown; expected {', '.join(known)}", key)
            # A key without a value keeps its default, as if it were left out.
            return {key: part for key, part in (value or {}).items() if part is not None}

        return core_schema.no_info_before_validator_function(read, handler(source))


# pydantic builds the schema of a class once and refers to it from then on. So what looks at the
# keys cannot be the class's own: it has to stand in the annotation of each place.
Section = Annotated[T, Mapped()]
Switch = Annotated[T | None, Mapped()]  # None where a file says `off`


def match(pattern: str, expected: str, *, numbers: bool = False) -> Check:
    """Return the check of a text that a pattern matches as a whole; with `numbers` of one, too."""

    def check(value: Any) -> str:
        text = str(value) if numbers and type(value) in (int, float) else value
        if not isinstance(text, str) or re.fullmatch(pattern, text) is None:
            raise ValueError(expected)
        return text

    return Check(check)


def choose(*known: str) -> Check:
    """Return the check of one of some texts."""
    return match("|".join(known), f"one of {', '.join(known)}")


class YamlFile:
    """A file of settings: its plain data (None for an empty one), and the line of each place.

    A value that YAML would take for something else than it looks like (010, 1:30) stays a text.
    """

    def __init__(self, kind: str, path: str | Path) -> None:
        """Read a file, which messages call by its kind.

        Raises:
            UserError: it cannot be read, is no mapping, sets a key twice, or holds what looks like
                a credential.
        """
        self._kind, self._path = kind, path
        self._root: Node | None = None
        # The data of lists and mappings by their nodes. Aliases share a node: aliases of aliases
        # would grow without bound, and one that holds itself would never end.
        self._built: dict[int, Any] = {}
        try:
            self._root = self._compose()
            self.data = self._build(self._root, ()) if self._root else None
        except RecursionError:
            self._fail(0, "its values are nested too deep")
        if not isinstance(self.data, dict | None):
            self.refuse((), f"the file holds {_show(self.data)}; expected keys and values")

    def validate(self, schema: type[T]) -> T:
        """Return what the file sets as a dataclass.

        Raises:
            UserError: there is a mistake, which the message names with its line.
        """
        from pydantic import ValidationError

        part: Any = schema  # which mypy holds for unhashable
        try:
            found: T = _adapt(part).validate_python(self.data)
        except ValidationError as error:
            self._explain(error.errors(include_url=False)[0])
        return found

    def refuse(self, place: Place, message: str) -> NoReturn:
        """Raise a `UserError` about a place, with the line of the nearest that the file has."""
        from yaml import MappingNode

        node = nearest = self._root
        for part in place:
            if isinstance(node, MappingNode):
                pairs = {key.value: (key, value) for key, value in node.value}
                nearest, node = pairs.get(part, (nearest, None))
            elif node and isinstance(part, int):
                nearest = node = node.value[part]
        self._fail(nearest, f"{_spell(place)} {message}".lstrip())

    def _compose(self) -> "Node | None":
        import yaml

        try:
            data = Path(self._path).read_bytes()
        except OSError as error:
            raise UserError(
                f"{self._kind} {self._path} cannot be read ({error.strerror})"
            ) from error
        try:
            text = data.decode("utf-8-sig")
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start)
            self._fail(line, "this is no UTF-8; save it as UTF-8")
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            self._fail(line, f"a character that YAML does not take, number {error.character}")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._fail(mark.line if mark else 0, f"this is no YAML ({error.problem})")

    def _build(self, node: "Node", place: Place) -> Any:
        """Return the data of a node, without a credential in any value or key."""
        from yaml import MappingNode, SequenceNode

        if id(node) in self._built:
            return self._built[id(node)]
        if isinstance(node, SequenceNode):
            entries = self._built[id(node)] = []
            entries += [self._build(part, (*place, n)) for n, part in enumerate(node.value)]
            return entries
        if not isinstance(node, MappingNode):
            self._check_harmless(SECRET_VALUE, node)
            return _read_scalar(node.tag.rpartition(":")[2], node.value)
        pairs = self._built[id(node)] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self._build(key_node, place)
            self._check_harmless(SECRET_KEY, key_node)
            if not isinstance(key, str):
                self._fail(key_node, f"the key {_show(key)} is no text; write it in quotes")
            if key in lines:
                name = _spell((*place, key))
                message = (
                    f"{name} is set more than once, in line {lines[key]} too; leave one of them"
                )
                self._fail(key_node, message)
            lines[key] = key_node.start_mark.line + 1
            pairs[key] = self._build(value_node, (*place, key))
        return pairs

    def _check_harmless(self, secret: re.Pattern[str], node: "Node") -> None:
        if secret.search(str(node.value)):
            self._fail(
                node, "this looks like a credential; put it into a Kubernetes secret, and name that"
            )

    def _explain(self, row: Mapping[str, Any]) -> NoReturn:
        """Raise one of pydantic's errors as a `UserError`."""
        place, cause = row["loc"], row.get("ctx", {}).get("error")
        if isinstance(cause, MisfitError):
            self.refuse((*place, *cause.place), str(cause))
        # What stands where a secret's name should may be the secret.
        hidden = cause and "secret" in _spell(place)
        shown = "something else" if hidden else _show(row["input"])
        self.refuse(place, f"is {shown}; expected {cause or EXPECTED[row['type']]}")

    def _fail(self, where: "Node | int | None", message: str) -> NoReturn:
        line = where if isinstance(where, int) else where.start_mark.line if where else 0
        raise UserError(f"{self._kind} {self._path}, line {line + 1}: {message}") from None


@cache  # a schema takes some ms to build
def _adapt(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(Section[schema])


def _spell(place: Place) -> str:
    """Return a place as a message has it: tolerations[0].key."""
    if place and place[-1] == "[key]":  # pydantic's mark of a key that breaks a rule
        return f"a key of {_spell(place[:-2])}"
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return "".join(parts).removeprefix(".")


def _read_scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in {"yes", "true", "on"}
    if kind == "int" and re.fullmatch(r"[-+]?(0|[1-9][0-9]*)", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"[-+]?[0-9_]*\.[0-9_]*([eE][-+][0-9]+)?", text):
        return float(text.replace("_", ""))
    return text


def _show(value: Any) -> str:
    """Return a value as a message has it; of what has parts, only that it has."""
    if isinstance(value, dict):
        value = dict.fromkeys(value, "...")
    elif isinstance(value, list):
        value = ["..." for _ in value]
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
