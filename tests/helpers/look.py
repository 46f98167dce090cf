"""Writes, as JSON, what of a file system no image should hold; run inside one, as root.

The argument is the folder of the image's packages.
"""

import json
import os
import re
import sys
from pathlib import Path

COMPILERS = re.compile(
    r"(.*-)?(cc|gcc|g\+\+|c\+\+|cpp|clang(\+\+)?|ld|as|make|cmake|nvcc|ptxas|tcc|rustc|go|protoc)"
    r"(-[\d.]+)?"
)
PRIVATE = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=\s]{200}")
CREDENTIALS = ("pip.conf", ".netrc", ".env", ".pypirc", "ca.pem", "credentials", "id_rsa")
CACHES = (
    "/root/.cache",
    "/home/expunge/.cache",
    "/mlflow/.cache",
    "/var/cache/apt/archives",
    "/var/lib/apt/lists",
    "/run/secrets",
    "/lock",
    "/wheels",
    "/pip",
)
ELSEWHERE = ("/proc", "/sys", "/dev")
LARGEST_KEY = 2**20  # bytes of a file that is read for a private key


def holds_key(path: Path) -> bool:
    """Whether a file of text holds a private key."""
    if not path.is_file() or path.stat().st_size > LARGEST_KEY:
        return False
    content = path.read_bytes()
    return b"PRIVATE KEY" in content and PRIVATE.search(content) is not None


def look(packages: Path) -> dict[str, list[str]]:
    """Paths by kind."""
    found: dict[str, list[str]] = {"compilers": [], "caches": [], "tests": [], "secrets": []}
    for name, folders, files in os.walk("/"):
        folder = Path(name)
        folders[:] = [inner for inner in folders if str(folder / inner) not in ELSEWHERE]
        ours = folder.is_relative_to(packages)
        paths = [folder / file for file in files]
        if name.startswith(CACHES):
            found["caches"] += map(str, paths)
        if ours:
            tests = (folder / inner for inner in folders if inner in ("test", "tests"))
            found["tests"] += map(str, tests)
        for path in paths:
            if COMPILERS.fullmatch(path.name) and os.access(path, os.X_OK):
                found["compilers"].append(str(path))
            if path.name in CREDENTIALS or (ours and holds_key(path)):
                found["secrets"].append(str(path))
    return found


if __name__ == "__main__":
    json.dump(look(Path(sys.argv[1])), sys.stdout)
