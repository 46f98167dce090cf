"""Values that the settings of a cluster may have, in Kubernetes' own terms."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from expunge.yaml_reader import Check, match

LONGEST_SECONDS = 2**31 - 1  # Kubernetes and kfp count seconds in 32 bits

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
# Without a thousand bytes, which kfp calls K and Kubernetes k.
_SIZES: dict[str, int] = {
    **{f"{prefix}i": 1024**power for power, prefix in enumerate("KMGTPE", start=1)},
    **{prefix: 1000**power for power, prefix in enumerate("MGTPE", start=2)},
}
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123
_DOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_WORD = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"  # a label's value, or its key's name
_PREFIX = rf"(?=[^/]{{1,253}}/){_DOMAIN}/"
_PATH_PART = r"(?!\.\.?(/|$))[-A-Za-z0-9_.]+"
_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_TAG, _DIGEST = r":[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", "@sha256:[0-9a-f]{64}"
_SIZE = rf"(?=0*[1-9])[0-9]{{1,9}}({'|'.join(_SIZES)})"
_SIZE_WORDS = f"a whole number and one of {', '.join(_SIZES)}, such as 8Gi"


def limit(lowest: int, highest: int) -> Check:
    """Return the check of a whole number between two, both included."""

    def check(value: Any) -> int:
        if type(value) is not int or not lowest <= value <= highest:  # True is an int too
            raise ValueError(f"a whole number from {lowest} to {highest}")
        return value

    return Check(check)


def count_seconds(value: Any) -> int:
    """Return the seconds of a time with its unit."""
    found = re.fullmatch(r"([0-9]{1,10})([smhd])", value) if isinstance(value, str) else None
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_SECONDS:
        raise ValueError(
            f"a whole number and one of {', '.join(_UNITS)}, such as 90s or 2h, more than 0s and "
            f"at most {LONGEST_SECONDS}s"
        )
    return seconds


def count_bytes(size: str) -> int:
    """Return how many bytes an amount of memory is."""
    unit = size.lstrip("0123456789")
    return int(size.removesuffix(unit)) * _SIZES.get(unit, 1)


_IMAGE_RULE = match(
    r"([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?(:[0-9]{1,5})?/)?"
    rf"{_COMPONENT}(/{_COMPONENT})*({_TAG}|({_TAG})?{_DIGEST})",
    "an image with its tag or digest, NAME:TAG or NAME@sha256:DIGEST of 64 hexadecimal digits",
)
_NAME_RULE = match(
    rf"(?=.{{1,253}}$){_DOMAIN}",
    "the name of a Kubernetes object: lower-case letters, digits, '-' and '.', such as expunge-s3",
)
_KEY_RULE = match(rf"({_PREFIX})?{_WORD}", "the key of a label, such as example.com/pool")
_VALUE_RULE = match(
    f"({_WORD})?",
    "at most 63 letters, digits, '-', '_' and '.'; write a number, true or false in quotes",
)
_GPU_RULE = match(
    _PREFIX + _WORD, "a resource of the nodes with its domain, such as nvidia.com/gpu"
)
_CPU_RULE = match(  # a million is the most: a slip of the finger is more
    r"(?=.*[1-9])((1000000|[0-9]{1,6})m?|[0-9]{1,6}\.[0-9]{1,3})",
    "a number of CPUs above 0, at most 1000000, such as 2, 0.5 or 500m",
    numbers=True,
)
_FOLDER_RULE = match(
    rf"(/{_PATH_PART})+",
    "an absolute path of letters, digits, '-', '_' and '.', without a slash at its end, such as "
    "/data",
)

Image = Annotated[str, _IMAGE_RULE]
Name = Annotated[str, _NAME_RULE]
LabelKey = Annotated[str, _KEY_RULE]
LabelValue = Annotated[str, _VALUE_RULE]
Labels = Mapping[LabelKey, LabelValue]
GpuType = Annotated[str, _GPU_RULE]
Cpu = Annotated[str, _CPU_RULE]
Size = Annotated[str, match(_SIZE, _SIZE_WORDS)]
SharedMemory = Annotated[str, match(f"0|{_SIZE}", _SIZE_WORDS, numbers=True)]  # 0 is none
Seconds = Annotated[int, Check(count_seconds)]
Folder = Annotated[str, _FOLDER_RULE]
