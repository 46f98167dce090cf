"""What values the settings of a cluster may have, in Kubernetes' own terms.

Each check returns the value as the settings hold it, or raises `ValueError` with what was
expected.
"""

import re
from collections.abc import Callable
from typing import Any

LONGEST_SECONDS = 2**31 - 1  # Kubernetes and kfp count seconds in 32 bits
MOST = 10**6  # of anything that is counted: a slip of the finger is not

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
# Without a thousand bytes, which kfp calls K and Kubernetes k.
_SIZES: dict[str, int] = {
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTPE", start=1)},
    **{prefix: 1000**power for power, prefix in enumerate("MGTPE", start=2)},
}
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123
_DOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # a label's value, or its key's name
_PATH_PART = r"(?!\.\.?$)[-A-Za-z0-9_.]+"
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    r"((?P<host>[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?)/)?"
    rf"{_COMPONENT}(/{_COMPONENT})*"
    r"(?P<tag>:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?P<digest>@.*)?"
)


def image(value: Any) -> str:
    """A container image that a tag or a digest pins."""
    found = _IMAGE.fullmatch(value) if isinstance(value, str) else None
    digest = found["digest"] if found else None
    if digest and not re.fullmatch(r"@sha256:[0-9a-f]{64}", digest):
        raise ValueError(
            f"a digest of sha256: and 64 hexadecimal digits, not {len(digest.split(':')[-1])}"
            if digest.startswith("@sha256:")
            else "a digest that begins with sha256:"
        )
    if found is None or not (found["tag"] or digest):
        raise ValueError("an image with its tag or digest, NAME:TAG or NAME@sha256:DIGEST")
    return str(value)


def name(value: Any) -> str:
    """The name of a Kubernetes object."""
    if not isinstance(value, str) or len(value) > 253 or not re.fullmatch(_DOMAIN, value):
        raise ValueError(
            "the name of a Kubernetes object: lower-case letters, digits, '-' and '.', "
            "such as expunge-s3"
        )
    return value


def label_key(value: Any) -> str:
    """The key of a node's label or taint, with or without a domain before it."""
    domain, slash, word = value.rpartition("/") if isinstance(value, str) else ("", "", "")
    if (slash and (len(domain) > 253 or not re.fullmatch(_DOMAIN, domain))) or not re.fullmatch(
        _WORD, word
    ):
        raise ValueError("the key of a label, such as example.com/pool")
    return str(value)


def label_value(value: Any) -> str:
    """The value of a node's label or taint; it may be empty."""
    if isinstance(value, str) and (not value or re.fullmatch(_WORD, value)):
        return value
    expected = "at most 63 letters, digits, '-', '_' and '.'"
    if isinstance(value, bool) or _is_number(value):
        expected = f"a text; write {str(value).lower()!r}, with the quotes"
    raise ValueError(expected)


def gpu_type(value: Any) -> str:
    """The resource by which a cluster counts its GPUs."""
    try:
        key = label_key(value)
    except ValueError:
        key = ""
    if "/" not in key:
        raise ValueError("a resource of the nodes with its domain, such as nvidia.com/gpu")
    return key


def cpu(value: Any) -> str:
    """CPUs, as a number or in thousandths (500m)."""
    text = str(value) if _is_number(value) else value
    if not isinstance(text, str) or not re.fullmatch(r"[0-9]+(\.[0-9]{1,3})?|[0-9]+m", text):
        raise ValueError("a number of CPUs, such as 2, 0.5 or 500m")
    if not 0 < float(text.removesuffix("m")) <= MOST:
        raise ValueError(f"more than 0 CPUs, and at most {MOST}")
    return text


def size(value: Any) -> str:
    """An amount of memory with its unit."""
    found = re.fullmatch(r"([0-9]{1,9})([A-Za-z]+)", value) if isinstance(value, str) else None
    if found is None or found[2] not in _SIZES or int(found[1]) == 0:
        raise ValueError(f"a whole number and one of {', '.join(_SIZES)}, such as 8Gi")
    return str(value)


def optional_size(value: Any) -> str:
    """An amount of memory, or 0 for none."""
    return "" if value in {0, "0"} and not isinstance(value, bool) else size(value)


def size_bytes(text: str) -> int:
    """How many bytes an amount of memory is."""
    digits = text.rstrip("".join({letter for unit in _SIZES for letter in unit}))
    return int(digits) * _SIZES[text.removeprefix(digits)]


def duration(value: Any) -> int:
    """A time with its unit, as seconds."""
    found = re.fullmatch(r"([0-9]{1,10})([smhd])", value) if isinstance(value, str) else None
    if found is None:
        raise ValueError(f"a whole number and one of {', '.join(_UNITS)}, such as 90s or 2h")
    seconds = int(found[1]) * _UNITS[found[2]]
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(f"more than 0s, and at most {LONGEST_SECONDS}s")
    return seconds


def whole(lowest: int, highest: int) -> Callable[[Any], int]:
    """A whole number between two, both included."""

    def check(value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return value

    return check


def folder_beside(*taken: str) -> Callable[[Any], str]:
    """The absolute path of a folder that is none of some, lies in none and has none in it."""

    def check(value: Any) -> str:
        parts = value.split("/")[1:] if isinstance(value, str) and value.startswith("/") else []
        if not parts or not all(re.fullmatch(_PATH_PART, part) for part in parts):
            raise ValueError(
                "an absolute path of letters, digits, '-', '_' and '.', without a slash at its end,"
                " such as /data"
            )
        for folder in taken:
            if f"{value}/".startswith(f"{folder}/") or f"{folder}/".startswith(f"{value}/"):
                raise ValueError(
                    f"another path, such as /data: a step has something else at {folder}"
                )
        return str(value)

    return check


def one_of(*known: str) -> Callable[[Any], str]:
    """One of some texts."""

    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f"one of {', '.join(known)}")
        return str(value)

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
