"""Models as files that other runtimes open: `kinema.export("model", to="onnx", output="folder")`.

The package itself is the function: see `exporting.export`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Package(ModuleType):
    """A package that is called as the function that it is about."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from .exporting import export

        return export(*arguments, **options)


sys.modules[__name__].__class__ = _Package
