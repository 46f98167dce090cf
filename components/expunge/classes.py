"""Which classes a request means, and whether the model can forget them. Checked before any work."""

from collections.abc import Sequence

from expunge.artifacts import ModelInfo, opaque_name
from expunge.errors import UserError


def find_classes(info: ModelInfo, wanted: Sequence[str]) -> tuple[int, ...]:
    """The class indices that `wanted` names, each by its name or its index, in rising order.

    A text that is one class's name and another's index is refused, as a guess would erase the
    wrong class; `index:3` and `name:3` say which is meant.

    Raises:
        UserError: a text is empty, unknown or ambiguous, or two mean the same class.
    """
    found = [_find(info, text.strip()) for text in wanted]
    if not found:
        raise UserError("no class is named; expected indices or names, such as --classes 3,5")
    repeated = sorted({index for index in found if found.count(index) > 1})
    if repeated:
        raise UserError(f"class {repeated[0]} is named more than once; name each class once")
    return tuple(sorted(found))


def _find(info: ModelInfo, text: str) -> int:
    kind, _, rest = text.partition(":")
    by_name = {
        name: index for index, name in enumerate(info.class_names) if index not in info.forgotten
    }
    indices = {str(index): index for index in range(len(info.class_names))}
    indices |= {opaque_name(index): index for index in info.forgotten}
    name, index = by_name.get(text), indices.get(text)
    if kind == "index" and rest in indices:
        return indices[rest]
    if kind == "name" and rest in by_name:
        return by_name[rest]
    if name is not None and index is not None and name != index:
        raise UserError(
            f"{text!r} is the name of class {name} and an index too; "
            f"write name:{text} or index:{text}"
        )
    if name is None and index is None:
        known = ", ".join(f"{i} ({info.class_names[i]})" for i in info.retained[:20])
        more = " ..." if len(info.retained) > 20 else ""
        raise UserError(f"class {text!r} is unknown; the model has {known}{more}")
    return name if name is not None else index  # type: ignore[return-value]


def check_forgettable(info: ModelInfo, classes: Sequence[int]) -> None:
    """Refuse a request that the model cannot fulfil: unknown, forgotten already, or all classes.

    Raises:
        UserError: with the class and the remedy.
    """
    count = len(info.class_names)
    for index in classes:
        if not 0 <= index < count:
            raise UserError(f"class {index} is unknown; the model has classes 0 to {count - 1}")
        if index in info.forgotten:
            raise UserError(
                f"class {index} is already forgotten by this version; there is nothing to do"
            )
    if set(classes) >= set(info.retained):
        raise UserError(
            f"classes {sorted(classes)} are all that the model has left; at least one must remain "
            "(to withdraw the whole model, delete it from the registry)"
        )
    if len(info.retained) - len(set(classes)) < 2:
        raise UserError(
            f"forgetting {sorted(classes)} would leave one class, and a classifier needs two; "
            "withdraw the model instead"
        )
