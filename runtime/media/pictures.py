"""A picture as a user gives it, opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Picture = str | os.PathLike[str] | np.ndarray | Tensor | Image


def open_picture(source: Picture) -> Image:
    """An RGB picture from a path, a PIL image, or an array or tensor (height, width, 3).

    Arrays are uint8, or floats from 0 to 1, which are rounded to 8 bits. Raises `UsageError` for
    anything else, and for a file that is no picture.
    """
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if not isinstance(source, (str, os.PathLike)):
        if hasattr(source, "__array__"):
            return Image.fromarray(_as_bytes(np.asarray(source)))
        raise UsageError(
            f"a picture is given as {type(source).__name__}; a path, an array (height, width, 3)"
            " or a PIL image is expected"
        )
    path = Path(source).expanduser()
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"picture {str(path)!r} cannot be read: {reason}") from None


def _as_bytes(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3 or array.shape[2] != 3:
        raise UsageError(f"a picture has shape {array.shape}; (height, width, 3) is expected")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or not 0 <= array.min() <= array.max() <= 1:
        raise UsageError(
            f"a picture is {array.dtype} from {array.min():g} to {array.max():g}; uint8, or floats"
            " from 0 to 1, are expected"
        )
    return (array * 255).round().astype(np.uint8)
