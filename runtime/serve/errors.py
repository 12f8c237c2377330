"""Refusals as clients of the Videos API expect them: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class APIError(Exception):
    """A refusal with an HTTP status. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str | None = None,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.type = type or kind_of(status)
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object."""
        values = {"message": self.message, "type": self.type, "param": self.param}
        return {"error": {**values, "code": self.code}}


def kind_of(status: int) -> str:
    """The error type of a status."""
    return TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
