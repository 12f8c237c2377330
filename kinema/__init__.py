"""kinema: an inference runtime for video diffusion transformers.

The names below are loaded when first used, so `import kinema` alone costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import export
    from .runtime.engine import Engine, load
    from .runtime.errors import Cancelled, KinemaError, UsageError
    from .runtime.media.video import Video
    from .runtime.profiling.run import profile
    from .runtime.provenance.keys import Identity
    from .runtime.provenance.marking import Provenance
    from .runtime.provenance.verify import Verification, verify
    from .runtime.requests.conditions import Condition
    from .runtime.requests.guidance_options import Guidance
    from .runtime.requests.request import Request
    from .runtime.sessions.job import Job
    from .runtime.sessions.session import Session

__version__ = "0.1.0"
__all__ = [
    "Cancelled",
    "Condition",
    "Engine",
    "Guidance",
    "Identity",
    "Job",
    "KinemaError",
    "Provenance",
    "Request",
    "Session",
    "UsageError",
    "Verification",
    "Video",
    "__version__",
    "export",
    "load",
    "profile",
    "verify",
]

_HOMES = {
    "Cancelled": "errors",
    "Condition": "requests.conditions",
    "Engine": "engine",
    "Guidance": "requests.guidance_options",
    "Identity": "provenance.keys",
    "Job": "sessions.job",
    "KinemaError": "errors",
    "Provenance": "provenance.marking",
    "Request": "requests.request",
    "Session": "sessions.session",
    "UsageError": "errors",
    "Verification": "provenance.verify",
    "Video": "media.video",
    "load": "engine",
    "profile": "profiling.run",
    "verify": "provenance.verify",
}


def __getattr__(name: str) -> Any:
    if name == "export":  # a package that is called
        return import_module(".export", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'kinema' has no attribute {name!r}")
    value = getattr(import_module(f".runtime.{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
