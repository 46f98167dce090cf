"""The layout of an image data set, wherever it lies: <split>/<class>/<file>."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from expunge.data.images import ImageFile
from expunge.errors import DataError

SPLITS = ("train", "test")
IGNORED = ("thumbs.db", "desktop.ini", "__macosx")  # what file managers leave behind

Parts = tuple[str, ...]  # a path below the data set's root, without "." and ".."


@dataclass
class Tree:
    """Files and folders by their path below the root; `origin` is what messages call the root."""

    origin: str
    files: dict[Parts, ImageFile] = field(default_factory=dict)
    folders: set[Parts] = field(default_factory=set)

    def drop_top(self) -> "Tree":
        """Return the tree below its only top-level folder, where that is not a split itself."""
        tops = {parts[0] for parts in (*self.files, *self.folders) if not is_ignored(parts)}
        if len(tops) != 1 or tops & set(SPLITS):
            return self
        (top,) = tops
        return Tree(
            f"{self.origin}/{top}",
            {parts[1:]: file for parts, file in self.files.items() if parts[0] == top},
            {parts[1:] for parts in self.folders if parts[0] == top and len(parts) > 1},
        )


@dataclass(frozen=True)
class Arranged:
    """Class names in their order and, for each split, its files and their class indices."""

    class_names: tuple[str, ...]
    splits: dict[str, list[tuple[ImageFile, int]]]


def is_ignored(parts: Iterable[str]) -> bool:
    """Return whether the path is hidden, lies in a hidden folder, or is a file manager's own."""
    return any(part.startswith(".") or part.lower() in IGNORED for part in parts)


def arrange(tree: Tree, splits: Sequence[str]) -> Arranged:
    """Sort the tree's files into classes; classes are the folder names in code point order.

    Raises:
        DataError: a split or a class is missing or empty, a file lies at another depth, the splits'
            classes differ, or there is one class only.
    """
    classes = {split: _list_classes(tree, split) for split in splits}
    names = sorted(classes[splits[0]])
    for split in splits[1:]:
        for name in sorted(classes[split].keys() ^ set(names)):
            lacking, having = (split, splits[0]) if name in names else (splits[0], split)
            raise DataError(
                f"{tree.origin}/{lacking}/{name} does not exist, though {having}/{name} does; "
                "both splits need the same class folders"
            )
    if len(names) < 2:
        raise DataError(
            f"{tree.origin}/{splits[0]} holds one class only ({names[0]}); a classifier needs at "
            "least two class folders"
        )
    return Arranged(
        tuple(names),
        {
            split: [(file, index) for index, name in enumerate(names) for file in files[name]]
            for split, files in classes.items()
        },
    )


def _list_classes(tree: Tree, split: str) -> dict[str, list[ImageFile]]:
    expected = f"expected {split}/<class>/<image file>"
    # Folders first: a class without images has to be told as empty, not as missing.
    classes: dict[str, list[ImageFile]] = {}
    for parts in tree.folders | {path[:-1] for path in tree.files}:
        if len(parts) > 1 and parts[0] == split and not is_ignored(parts):
            classes.setdefault(parts[1], [])
    for parts in sorted(tree.files):
        if parts[0] != split or is_ignored(parts):
            continue
        if len(parts) != 3:
            raise DataError(
                f"{tree.files[parts].name} lies at the wrong depth; {expected}: move or remove it"
            )
        classes[parts[1]].append(tree.files[parts])
    if not classes:
        raise DataError(f"{tree.origin} has no class folders under {split}/; {expected}")
    for name, files in sorted(classes.items()):
        if not files:
            raise DataError(
                f"{tree.origin}/{split}/{name} holds no image; add images or remove the folder"
            )
    return classes
