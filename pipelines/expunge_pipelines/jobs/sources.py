"""Data sources, files and architectures as a user names them on this machine."""

from pathlib import Path

from expunge import environment
from expunge.config import PrepareDataConfig
from expunge.models import check_architecture


def check_known(source: str, image_size: int, arch: str) -> None:
    """Refuse a misspelt training now, and not after an hour of downloads.

    Raises:
        UserError: there is no such source, size or architecture.
    """
    from expunge.data.sources import find_loader

    PrepareDataConfig(source, environment.data_root(), image_size)
    find_loader(source)
    check_architecture(arch)


def absolute_source(source: str) -> str:
    """Return the source with an absolute path, if it is a folder.

    A version remembers where its data was, and may be read from another working directory.
    """
    kind, _, path = source.partition(":")
    return f"folder:{Path(path).expanduser().resolve()}" if kind == "folder" and path else source


def absolute_file(name: str) -> str:
    """Return the absolute path of a file that exists; any other name is returned as it is.

    A step may have another working directory than the command.
    """
    path = Path(name).expanduser()
    return str(path.resolve()) if name and path.exists() else name
