"""Archives of an image folder, read in place: no member is ever written under its own name."""

import gzip
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from expunge.data.images import ImageFile
from expunge.data.layout import Parts, Tree, is_ignored
from expunge.errors import DataError

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")

# An image file is smaller than this by far; a member that unpacks to more would fill the memory.
MEMBER_LIMIT = 2**30

# What the readers raise on damaged bytes; RuntimeError is zipfile's for an encrypted member, and
# its NotImplementedError for an unknown compression is one as well.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    ValueError,
    RuntimeError,
)


@contextmanager
def open_archive(path: Path, origin: str, scratch: Path) -> Iterator[Tree]:
    """Open the files in an archive, below its one top-level folder if it has one.

    They are readable inside the context.

    A gzipped tar is unzipped into a temporary folder below `scratch` first, since it cannot be
    read out of order. `origin` is what messages call the archive.

    Raises:
        DataError: the archive is of another kind, damaged, or holds a member that is a link or a
            device, lies outside of its folder, or is far too large.
    """
    kind = path.name.lower()
    with ExitStack() as stack:
        if kind.endswith(".zip"):
            tree = _read_zip(path, origin, stack)
        elif kind.endswith((".tar.gz", ".tgz")):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=scratch)))
            tree = _read_tar(_unzip(path, origin, folder / "plain.tar"), origin, stack)
        elif kind.endswith(".tar"):
            tree = _read_tar(path, origin, stack)
        else:
            raise DataError(
                f"{origin} is neither a folder nor an archive by its name; expected one of "
                f"{', '.join(ARCHIVES)}"
            )
        yield tree.drop_top()


@contextmanager
def _report_damage(origin: str) -> Iterator[None]:
    """Turn whatever a reader raises on damaged bytes into a `DataError`."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(
            f"{origin} is a damaged or truncated archive ({error}); write or download it anew"
        ) from error


def _unzip(path: Path, origin: str, plain: Path) -> Path:
    with plain.open("wb") as target, _report_damage(origin), gzip.open(path, "rb") as source:
        shutil.copyfileobj(source, target, 2**20)
    return plain


def _read_tar(path: Path, origin: str, stack: ExitStack) -> Tree:
    with _report_damage(origin):
        file = stack.enter_context(path.open("rb"))
        # "r:" and no guess: of a compressed tar, each member would be read from the start
        archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))  # noqa: SIM115
        members = archive.getmembers()
        # tarfile takes a broken header for the end; the true end is a block of zeros.
        file.seek(archive.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end mark is missing")
    # one file position for all members, and the pool's threads read several at once
    lock = threading.Lock()

    def make_reader(member: tarfile.TarInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with lock, _report_damage(origin):
                content = archive.extractfile(member)
                return content.read() if content else b""

        return read

    tree = Tree(origin)
    for member in members:
        parts = _split_safely(member.name, origin)
        # Nothing is extracted; the filter is asked because it knows more ways to climb out.
        try:
            tarfile.data_filter(member, os.sep)
        except tarfile.FilterError as error:
            raise DataError(_describe_refusal(origin, member.name, str(error))) from error
        if not (member.isreg() or member.isdir()):
            raise DataError(_describe_refusal(origin, member.name, "it is a link"))
        if member.isdir():
            _add_folder(tree, parts)
        else:
            _add_file(tree, parts, member.size, make_reader(member))
    return tree


def _read_zip(path: Path, origin: str, stack: ExitStack) -> Tree:
    with _report_damage(origin):
        archive = stack.enter_context(zipfile.ZipFile(path))
    lock = threading.Lock()

    def make_reader(member: zipfile.ZipInfo) -> Callable[[], bytes]:
        def read() -> bytes:
            with lock, _report_damage(origin):
                return archive.read(member)

        return read

    tree = Tree(origin)
    for member in archive.infolist():
        parts = _split_safely(member.filename, origin)
        kind = stat.S_IFMT(member.external_attr >> 16)  # Unix writes its mode there; others 0
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(_describe_refusal(origin, member.filename, "it is a link or a device"))
        if member.is_dir():
            _add_folder(tree, parts)
        else:
            _add_file(tree, parts, member.file_size, make_reader(member))
    return tree


def _add_folder(tree: Tree, parts: Parts) -> None:
    # an archive of "." has a member for the root itself, which has no parts
    if parts and not is_ignored(parts):
        tree.folders.add(parts)


def _add_file(tree: Tree, parts: Parts, size: int, read: Callable[[], bytes]) -> None:
    if not parts or is_ignored(parts):
        return
    name = f"{tree.origin}/{'/'.join(parts)}"
    if size > MEMBER_LIMIT:
        raise DataError(
            f"{name} unpacks to {size} bytes, above the limit of {MEMBER_LIMIT}; remove it"
        )
    tree.files[parts] = ImageFile(name, read)


def _split_safely(name: str, origin: str) -> Parts:
    # Zip files of Windows tools hold backslashes; both kinds of slash are read as one here.
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise DataError(_describe_refusal(origin, name, "it lies outside of the archive's folder"))
    return path.parts


def _describe_refusal(origin: str, name: str, reason: str) -> str:
    return (
        f"{origin} holds the member {name!r}, which is refused: {reason}; write the archive anew "
        "from plain files and folders (tar --dereference --hard-dereference)"
    )
