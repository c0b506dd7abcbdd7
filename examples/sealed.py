"""Payloads and results that no node can read: sealed by the client, opened by the handler."""

import base64
import json
import os
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from tq_node import Context, task

KEY_BYTES = 64
SEALED_BY = "1"
"""Stands in each value: another key, or another form, gets another one."""


class Sealed:
    """A codec by AES-SIV (RFC 5297), for ``Queue(codec=…)`` and for handlers."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESSIV(key)

    def encode(self, value: Any, place: str) -> Any:
        """The same value in the same place becomes the same text: a submit may be repeated."""
        sealed = self._cipher.encrypt(json.dumps(value).encode(), [place.encode()])
        return {"sealed": SEALED_BY, "value": base64.b64encode(sealed).decode()}

    def decode(self, value: Any, place: str) -> Any:
        """Raises if it was sealed by another key, changed, or moved from another place."""
        if not isinstance(value, dict) or value.get("sealed") != SEALED_BY:
            raise ValueError("it is not sealed")
        return json.loads(self._cipher.decrypt(base64.b64decode(value["value"]), [place.encode()]))


def key_in(path: str | Path) -> bytes:
    """The key in a file that holds it in hexadecimal."""
    key = bytes.fromhex(Path(path).read_text())
    if len(key) != KEY_BYTES:
        raise ValueError(f"{path} holds no key of {KEY_BYTES} bytes")
    return key


@task("settle")
def settle(payload: Any, context: Context) -> Any:
    """Settles an invoice, as far as this example goes."""
    codec = Sealed(key_in(os.environ["SEALED_KEY_FILE"]))
    invoice = codec.decode(payload, f"payload/{context.task_id}")
    result = {"settled": invoice["amount"], "of": invoice["customer"]}
    return codec.encode(result, f"result/{context.task_id}")
