"""What the invisible marks say: 32 bits that follow from the request and the weights alone.

Every executor, on every device, writes the same: the number says which request was made with which
model, to whoever has the request and the hash. It names nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError

PAYLOAD_BITS = 32


def payload_of(request: Mapping[str, Any], weights: str) -> int:
    """The first 32 bits of SHA-256 over the request (with its seed) and the hash of the weights.

    The order of keys does not matter. Raises UsageError for a request that JSON can't hold.
    """
    try:
        text = json.dumps(
            {"request": dict(request), "weights": weights},
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=True,
            allow_nan=False,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"the request of a mark has to fit in JSON: {error}") from None
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: PAYLOAD_BITS // 8], "big")
