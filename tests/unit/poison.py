"""What is no message of ours, or only looks like one, for the tests of the transports."""

import base64
import copy
import json
from typing import Any

GARBAGE = [
    b"", b"no json", b"[" * 5000, b"7", b"{}", b'{"properties": {}}', b'{"properties": 7}', b"\xff",
    b'{"properties":{"delivery_tag":"\xff"}}', b'{"headers": {"lang": "\x1f"}}', b'{"headers": {"lang": "\n"}}',
]  # fmt: skip


def _encoded(body: object) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


_CHAIN = {"chain": [{"task": "somebody.elses"}], "callbacks": None, "errbacks": None, "chord": None}
POISON: dict[str, dict[str, Any]] = {
    "no body": {"body": None},
    "a body that is no text": {"body": 7},
    "a body that is not base64": {"body": "%%%"},
    "a body that is not JSON": {"body": base64.b64encode(b"{{{").decode()},
    "a body of one": {"body": _encoded([[]])},
    "a body that is a mapping": {"body": _encoded({"a": 1})},
    "arguments that are no list": {"body": _encoded([1, {}, {}])},
    "a chain": {"body": _encoded([["a1"], {}, _CHAIN])},
    "pickle": {"content-type": "application/x-python-serialize"},
    "no content type": {"content-type": None},
    "another encoding": {"content-encoding": "klingon"},
    "headers that are a list": {"headers": [1]},
    "no headers": {"headers": None},
    "no id": {"headers.id": None},
    "an id that is a list": {"headers.id": [1]},
    "another task": {"headers.task": "os.system"},
    "a built-in task": {"headers.task": "celery.map"},
    "a task that is a list": {"headers.task": ["embedfleet.embed"]},
    "a time limit": {"headers.timelimit": [1, 1]},
    "half a time limit": {"headers.timelimit": [None]},
    "an ETA": {"headers.eta": "2026-11-21T00:00:00"},
    "an expiry": {"headers.expires": "2026-11-21T00:00:00"},
    "a compression": {"headers.compression": "application/x-gzip"},
    "stamps": {"headers.stamps": {"a": 1}},
    "another body encoding": {"properties.body_encoding": "rot13"},
    "delivery info that is text": {"properties.delivery_info": "x"},
}


def changed(message: dict[str, Any], name: str) -> dict[str, Any]:
    """A sound message, spoiled in this way."""
    spoiled = copy.deepcopy(message)
    for path, value in POISON[name].items():
        *parents, last = path.split(".")
        (spoiled[parents[0]] if parents else spoiled)[last] = value
    return spoiled
