"""Selection of classes: which ones a request means, and whether the model can forget them."""

from collections.abc import Sequence

from expunge.errors import UserError
from expunge.formats.model import ModelInfo, make_opaque_name


def find_classes(info: ModelInfo, class_texts: Sequence[str]) -> tuple[int, ...]:
    """Return the class indices that `class_texts` mean, in rising order.

    Each text is a class's name or its index. One that could mean two classes is refused, since a
    guess would erase the wrong one; `index:3` and `name:3` say which is meant.

    Raises:
        UserError: a text is empty, unknown or ambiguous, or two mean the same class.
    """
    found = [_find_class(info, text.strip()) for text in class_texts]
    if not found:
        raise UserError("no class is named; expected indices or names, such as --classes 3,5")
    repeated = sorted({index for index in found if found.count(index) > 1})
    if repeated:
        raise UserError(f"class {repeated[0]} is named more than once; name each class once")
    return tuple(sorted(found))


def _find_class(info: ModelInfo, text: str) -> int:
    """Return the one class that a text means."""
    kind, _, rest = text.partition(":")
    # A data set may give two classes one name, so that a name has a list.
    by_name: dict[str, list[int]] = {}
    for index in info.retained:
        by_name.setdefault(info.class_names[index], []).append(index)
    indices = {str(index): index for index in range(len(info.class_names))}
    indices |= {make_opaque_name(index): index for index in info.forgotten}
    if kind == "index" and rest in indices:
        return indices[rest]
    is_name = kind == "name" and rest in by_name
    named = by_name.get(rest if is_name else text, [])
    if len(named) > 1:
        raise UserError(
            f"{text!r} is the name of classes {' and '.join(map(str, named))}; "
            f"write {' or '.join(f'index:{index}' for index in named)}"
        )
    meant = {*named, *([indices[text]] if text in indices and not is_name else [])}
    if len(meant) > 1:
        raise UserError(
            f"{text!r} is the name of class {named[0]} and an index too; "
            f"write name:{text} or index:{text}"
        )
    if not meant:
        known = ", ".join(f"{i} ({info.class_names[i]})" for i in info.retained[:20])
        more = " ..." if len(info.retained) > 20 else ""
        raise UserError(f"class {text!r} is unknown; the model has {known}{more}")
    return meant.pop()


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
