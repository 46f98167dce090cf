import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from expunge.data import archive as archive_module
from expunge.data.archive import open_archive
from expunge.errors import DataError

Member = tuple[str, bytes]
FILES: list[Member] = [("./train/cat/1.png", b"one"), ("./train/dog/1.png", b"two" * 700)]


def write_tar(path: Path, *extra: tarfile.TarInfo, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in FILES:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def write_zip(path: Path, *extra: zipfile.ZipInfo) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES:
            archive.writestr(name, data)
        for member in extra:
            archive.writestr(member, b"x")
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def contents(path: Path) -> dict[str, bytes]:
    with open_archive(path, str(path), path.parent) as tree:
        return {"/".join(parts): file.read() for parts, file in tree.files.items()}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.tar", write_tar),
        ("a.tar.gz", lambda path: write_tar(path, mode="w:gz")),
        ("a.TGZ", lambda path: write_tar(path, mode="w:gz")),
        ("a.zip", write_zip),
    ],
)
def test_every_kind_gives_the_same_files(
    name: str, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = write(tmp_path / name)
    assert contents(path) == {"train/cat/1.png": b"one", "train/dog/1.png": b"two" * 700}
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_known_and_hidden_members_are_not(tmp_path: Path) -> None:
    extra = [member("train/owl", tarfile.DIRTYPE), member("train/.x"), member(".", tarfile.DIRTYPE)]
    path = write_tar(tmp_path / "a.tar", *extra)
    with open_archive(path, "a.tar", tmp_path) as tree:
        assert ("train", "owl") in tree.folders
        assert ("train", ".x") not in tree.files
        assert tree.files["train", "cat", "1.png"].name == "a.tar/train/cat/1.png"


@pytest.mark.parametrize(
    "evil",
    [
        member("../evil.png"),
        member("train/../../evil.png"),
        member("/etc/evil.png"),
        member("C:\\evil.png"),
        member("train\\..\\..\\evil.png"),
        member("train/cat/evil.png", tarfile.SYMTYPE, "/etc/passwd"),
        member("train/cat/evil.png", tarfile.SYMTYPE, "../../../evil"),
        member("train/cat/evil.png", tarfile.SYMTYPE, "1.png"),
        member("train/cat/evil.png", tarfile.LNKTYPE, "../../evil"),
        member("train/cat/evil.png", tarfile.LNKTYPE, "./train/cat/1.png"),
        member("train/cat/evil.png", tarfile.CHRTYPE),
        member("train/cat/evil.png", tarfile.BLKTYPE),
        member("train/cat/evil.png", tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.linkname}-{info.type.decode()}",
)
def test_a_tar_member_that_is_no_plain_file_inside_is_refused(
    evil: tarfile.TarInfo, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "a.tar", evil)
    with pytest.raises(DataError, match=r"a.tar holds the member '.*evil.png', which is refused: "):
        contents(path)


def test_links_and_climbing_names_are_refused_in_a_zip(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("train/cat/evil.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for evil, reason in (
        (link, "it is a link or a device; write the archive anew"),
        (zipfile.ZipInfo("../evil.png"), "it lies outside of the archive's folder"),
        (zipfile.ZipInfo("/evil.png"), "it lies outside of the archive's folder"),
    ):
        path = write_zip(tmp_path / "a.zip", evil)
        with pytest.raises(DataError, match=rf"evil.png', which is refused: {reason}"):
            contents(path)


def test_a_huge_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MEMBER_LIMIT", 1000)
    for path in (write_tar(tmp_path / "a.tar"), write_zip(tmp_path / "a.zip")):
        with pytest.raises(
            DataError, match=r"train/dog/1.png unpacks to 2100 bytes, above the limit"
        ):
            contents(path)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_truncated_archive_is_named_wherever_it_is_cut(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "a.zip":
        write_zip(path)
    else:
        write_tar(path, mode="w:gz" if name.endswith("gz") else "w")
    whole = path.read_bytes()
    ends = 512 * 8 if name == "a.tar" else len(whole)  # two headers and six blocks of data
    for cut in range(0, ends, max(1, ends // 40)):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=rf"{name} is a damaged or truncated archive \("):
            contents(path)


def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar")
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 1  # in the checksum of the second member's header
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"damaged or truncated archive \(its end mark is missing\)"
    ):
        contents(path)


def test_damaged_and_encrypted_members_are_named(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip")
    data = path.read_bytes()
    damaged = data.replace(b"one", b"won", 1)  # too short to be deflated any smaller
    path.write_bytes(damaged if damaged != data else data[:45] + b"\xff" + data[46:])
    with pytest.raises(DataError, match=r"a.zip is a damaged or truncated archive"):
        contents(path)
    start = data.index(b"PK\x01\x02") + 8  # the flags in the central directory: bit 0, encrypted
    path.write_bytes(data[:start] + b"\x01" + data[start + 1 :])
    with pytest.raises(
        DataError, match=r"a.zip is a damaged or truncated archive .*(encrypted|differ)"
    ):
        contents(path)
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(b"no tar at all" * 100))
    with pytest.raises(
        DataError, match=r"a.tgz is a damaged or truncated archive \(.*write or down"
    ):
        contents(path)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.rar"
    path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"a.rar is neither a folder nor an archive .* \.tar, \.tar\.gz"
    ):
        contents(path)
