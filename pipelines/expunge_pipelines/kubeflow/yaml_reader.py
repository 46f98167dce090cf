"""Read a YAML file of settings so that every mistake is named with its line.

A check takes a value as the file has it and returns what the settings hold, or raises `ValueError`
with what was expected; the reader puts the file, the line, the key and the value before that.
A value that YAML would take for something else than it looks like (010, 1:30) stays a text.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from expunge.errors import UserError

if TYPE_CHECKING:
    from yaml import MappingNode, Node

T = TypeVar("T")
Check = Callable[[Any], T]

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


class Section:
    """A mapping of the file. Take what it may hold, then close it: what is left is unknown."""

    def __init__(self, path: str, node: "MappingNode | None", name: str = "") -> None:
        self._path = path
        self._node = node
        self.name = name
        self._known: set[str] = set()
        self._switches: set[str] = set()  # keys that may say `off`
        self._entries: dict[str, tuple[Node, Node]] = {}
        for key, value in node.value if node else ():
            text = _value(key)
            if not isinstance(text, str):
                _fail(path, key, f"the key {_shown(text)} is no text; write it in quotes")
            if text in self._entries:
                first = self._entries[text][0].start_mark.line + 1
                _fail(
                    path,
                    key,
                    f"{self._full(text)} is set more than once, in line {first} too; leave one "
                    "of them",
                )
            self._entries[text] = (key, value)

    def take(self, key: str, check: Check[T], default: T) -> T:
        """The value of a key as `check` returns it; one that is left out or empty is default."""
        node = self._look(key)
        return default if node is None else self._checked(self._full(key), node, check)

    def items(self, key: str, check: Check[T]) -> tuple[T, ...]:
        """The values of a list."""
        name = self._full(key)
        return tuple(
            self._checked(f"{name}[{number}]", node, check)
            for number, node in enumerate(self._list(key))
        )

    def labels(self, key: str, name: Check[str], value: Check[str]) -> dict[str, str]:
        """A mapping whose keys are free."""
        found = {}
        section = self.section(key)
        for text, (key_node, node) in section._entries.items():
            checked = section._checked(f"a key of {section.name}", key_node, name)
            found[checked] = section._checked(section._full(text), node, value)
        return found

    def section(self, key: str) -> "Section":
        """The mapping under a key; an empty one where it is left out."""
        node = self._look(key)
        return self._section(self._full(key), node, may_be_off=key in self._switches)

    def sections(self, key: str) -> Iterator["Section"]:
        """The mappings of a list."""
        for number, node in enumerate(self._list(key)):
            yield self._section(f"{self._full(key)}[{number}]", node)

    def is_off(self, key: str) -> bool:
        """Whether the key says `off` where it might have a mapping."""
        self._switches.add(key)
        node = self._look(key)
        return node is not None and _value(node) is False

    def has(self, key: str) -> bool:
        """Whether the key has a value."""
        return self._look(key) is not None

    def close(self) -> None:
        """Refuse what nobody took."""
        for text, (key, _) in self._entries.items():
            if text not in self._known:
                name = self._full(text)
                known = ", ".join(sorted(self._known))
                _fail(self._path, key, f"{name} is unknown; expected {known}")

    def refuse(self, key: str, message: str) -> NoReturn:
        """Say what is wrong with a key beside others: at its line, or at the section's."""
        node = self._entries[key][0] if key in self._entries else self._node
        _fail(self._path, node, f"{self._full(key)} {message}")

    def _full(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def _look(self, key: str) -> "Node | None":
        self._known.add(key)
        _, node = self._entries.get(key, (None, None))
        return None if node is None or _value(node) is None else node

    def _section(self, name: str, node: "Node | None", *, may_be_off: bool = False) -> "Section":
        from yaml import MappingNode

        if node is not None and not isinstance(node, MappingNode):
            expected = "keys and values" + (", or off without quotes" if may_be_off else "")
            _fail(self._path, node, f"{name} is {_shown(_value(node))}; expected {expected}")
        return Section(self._path, node, name)

    def _list(self, key: str) -> list["Node"]:
        from yaml import SequenceNode

        node = self._look(key)
        if node is None:
            return []
        if not isinstance(node, SequenceNode):
            shown = _shown(_value(node))
            _fail(self._path, node, f"{self._full(key)} is {shown}; expected a list")
        return list(node.value)

    def _checked(self, name: str, node: "Node", check: Check[T]) -> T:
        value = _value(node)
        try:
            return check(value)
        except ValueError as error:
            # What stands where a secret's name should may be the secret.
            shown = "something else" if "secret" in name else _shown(value)
            _fail(self._path, node, f"{name} is {shown}; expected {error}")


def read_file(path: str) -> Section:
    """The mapping in a YAML file; an empty file holds an empty one.

    Raises:
        UserError: it cannot be read, is no mapping, or holds what looks like a credential.
    """
    import yaml

    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cluster settings {path} cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        _fail(path, data.count(b"\n", 0, error.start), "this is no UTF-8; save it as UTF-8")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        _fail(path, line, f"a character that YAML does not take, number {error.character}")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        _fail(path, mark.line if mark else 0, f"this is no YAML ({error.problem})")
    except RecursionError:
        _fail(path, 0, "its values are nested too deep")
    if node is None or _value(node) is None:
        return Section(path, None)
    if not isinstance(node, yaml.MappingNode):
        _fail(path, node, "expected keys and values, such as image: NAME:TAG")
    _check_no_credential(path, node)
    return Section(path, node)


def _check_no_credential(path: str, top: "Node") -> None:
    """Refuse a key or a value anywhere in the file that looks like one, without showing it."""
    from yaml import MappingNode, ScalarNode

    waiting, seen = [top], set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias, which may even hold itself
            continue
        seen.add(id(node))
        keys = [key for key, _ in node.value] if isinstance(node, MappingNode) else []
        looks = [key for key in keys if SECRET_KEY.search(str(key.value))]
        if isinstance(node, ScalarNode):
            looks += [node] if SECRET_VALUE.search(node.value) else []
        elif isinstance(node, MappingNode):
            waiting += [child for pair in node.value for child in pair]
        else:
            waiting += node.value
        if looks:
            _fail(
                path,
                looks[0],
                "this looks like a credential; put it into a Kubernetes secret, and name that "
                "under secrets",
            )


def _value(node: "Node") -> Any:
    """A scalar by its kind; lists and mappings as they are shown in a message."""
    from yaml import MappingNode, SequenceNode

    if isinstance(node, SequenceNode):
        return ["..." for _ in node.value]
    if isinstance(node, MappingNode):
        return {str(key.value): "..." for key, _ in node.value}
    return _scalar(node.tag.rpartition(":")[2], node.value)


def _scalar(kind: str, text: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in {"yes", "true", "on"}
    if kind == "int" and re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        return int(text)
    if kind == "float" and re.fullmatch(r"-?[0-9]+\.[0-9]+", text):
        return float(text)
    return text


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _fail(path: str, place: "Node | int | None", message: str) -> NoReturn:
    line = place if isinstance(place, int) else place.start_mark.line if place else 0
    raise UserError(f"cluster settings {path}, line {line + 1}: {message}") from None
