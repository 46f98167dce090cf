"""What the small Kubeflow Pipelines server takes, and what it refuses."""

import email
import json
import re
from email.policy import HTTP
from typing import Any

from kfp_server_api import models

KINDS = {"str": str, "bool": bool, "int": int}
INPUTS: dict[str, Any] = {"STRING": str, "BOOLEAN": bool, "LIST": list, "STRUCT": dict}
INPUTS |= {"NUMBER_INTEGER": int, "NUMBER_DOUBLE": (int, float)}
Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 (no error of the server's)
    """An answer that is no 200: its status and message."""


def check(value: Any, kind: str, where: str) -> None:
    """Hold a value against a type of the API's definition."""
    mapped = re.fullmatch(r"dict\(str, (.*)\)", kind)
    several = re.fullmatch(r"list\[(.*)\]", kind)
    if kind in KINDS:
        int64 = where.endswith(".max_concurrency") and type(value) is int  # or as text: both do
        if not int64 and not isinstance(value, KINDS[kind]):
            raise Refused(400, f"{where} is {value!r}; expected {kind}")
    elif mapped:
        for key, part in value.items():
            check(part, mapped[1], f"{where}.{key}")
    elif several:
        for part in value:
            check(part, several[1], where)
    elif kind not in ("object", "datetime"):
        model = getattr(models, kind)
        known = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
        if not known and value not in model.allowable_values:
            raise Refused(400, f"{where} is {value!r}; expected {model.allowable_values}")
        if known and (not isinstance(value, dict) or set(value) - set(known)):
            raise Refused(400, f"{where} is {value!r}; expected {set(known)}")
        for key in known and value:
            check(value[key], known[key], f"{where}.{key}")


def check_inputs(inputs: Json, given: Json) -> None:
    """Hold the parameters of a run against those of its pipeline."""
    if unknown := set(given) - set(inputs):
        raise Refused(400, f"parameter(s) provided are not required by pipeline: {unknown}")
    for name, definition in inputs.items():
        kind = definition["parameterType"]
        if name not in given:
            if not definition.get("isOptional") and "defaultValue" not in definition:
                raise Refused(400, f"parameter {name} is not optional")
        elif not isinstance(given[name], INPUTS[kind]) or (
            isinstance(given[name], bool) and kind != "BOOLEAN"
        ):
            raise Refused(400, f"parameter {name} requires {kind}")


def content_of(headers: Any, body: bytes) -> Any:
    """Return the JSON object of a body, or the file of an upload."""
    kind = headers["Content-Type"]
    if kind.startswith("multipart/form-data"):
        head = f"Content-Type: {kind}\r\n\r\n".encode()
        for part in email.message_from_bytes(head + body, policy=HTTP).iter_parts():
            if part.get_param("name", header="content-disposition") == "uploadfile":
                return part.get_payload(decode=True)
    return json.loads(body)
