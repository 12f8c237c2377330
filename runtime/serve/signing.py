"""Signatures of webhooks: HMAC-SHA256 over id, time and body, as standardwebhooks.com has them."""

from __future__ import annotations

import base64
import hmac
import secrets
from collections.abc import Iterable

PREFIX = "whsec_"


def new_secret() -> str:
    """What an endpoint checks signatures with."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def signed(keys: Iterable[str], id: str, sent_at: int, body: bytes) -> dict[str, str]:
    """The three headers of a message, signed with each secret; one that holds is enough."""
    message = f"{id}.{sent_at}.".encode() + body
    signatures = [
        hmac.digest(base64.b64decode(key.removeprefix(PREFIX)), message, "sha256") for key in keys
    ]
    return {
        "webhook-id": id,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }
