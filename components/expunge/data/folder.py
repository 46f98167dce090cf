"""The source `folder:PATH`: a folder with train/<class>/ and test/<class>/, or an archive of it."""

import os
from collections.abc import Sequence
from pathlib import Path

from expunge.config import PrepareDataConfig
from expunge.data.archive import ARCHIVES, open_archive
from expunge.data.image_set import write_image_set
from expunge.data.images import ImageFile
from expunge.data.layout import Tree, is_ignored
from expunge.errors import DataError
from expunge.formats.dataset import DatasetInfo


def write_folder(config: PrepareDataConfig, target: Path) -> DatasetInfo:
    """Write the images at `folder:PATH`; see `write_image_set`."""
    path = Path(config.source.removeprefix("folder:")).expanduser()
    if path.is_dir():
        return write_image_set(config, list_folder(path, config.splits), target)
    if not path.exists():
        raise DataError(
            f"{path} does not exist; folder:PATH names a folder with train/ and test/, or an "
            f"archive of one ({', '.join(ARCHIVES)})"
        )
    with open_archive(path, str(path), target.parent) as tree:
        return write_image_set(config, tree, target)


def list_folder(root: Path, splits: Sequence[str]) -> Tree:
    """List the files and folders below the splits' folders.

    Links are followed: the folder is the user's own, unlike an archive.
    """
    tree = Tree(str(root))
    for split in splits:
        if (root / split).is_dir():
            _scan(root / split, (split,), tree)
    return tree


def _scan(folder: Path, parts: tuple[str, ...], tree: Tree) -> None:
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed ({error.strerror}); make it readable"
        ) from error
    tree.folders.add(parts)
    for entry in entries:
        below = (*parts, entry.name)
        # Nothing of a data set lies deeper than a class folder: one level more shows what is wrong.
        if entry.is_dir() and len(below) <= 3:
            _scan(Path(entry.path), below, tree)
        elif not is_ignored(below) and not (entry.is_file() or entry.is_dir()):
            raise DataError(
                f"{entry.path} is no regular file (a broken link, a pipe, a device); remove it"
            )
        else:
            tree.files[below] = make_local_file(Path(entry.path))


def make_local_file(path: Path, name: str | None = None) -> ImageFile:
    """Wrap a file on disk as an `ImageFile`; a `DataError` names it where it cannot be read."""

    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{name or path} cannot be read ({error.strerror}); make it a readable file"
            ) from error

    return ImageFile(name or str(path), read)
