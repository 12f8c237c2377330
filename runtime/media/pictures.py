"""A picture as a user gives it, opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from ..files import reason_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image
    from torch import Tensor

    Picture = str | os.PathLike[str] | np.ndarray | Tensor | Image


def open_picture(source: Picture) -> Image:
    """An RGB picture from a path, a PIL image, or an array or tensor (height, width, 3).

    Arrays are uint8, or floats from 0 to 1, which are rounded to 8 bits. Raises `UsageError` for
    anything else, and for a file that is no picture.
    """
    import numpy as np
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
    with opened(source) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Image]:
    """A picture's file; `UsageError` for one that cannot be read, as far as it is read inside."""
    from PIL import Image, UnidentifiedImageError

    path = Path(path).expanduser()
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError:
        raise UsageError(f"picture {str(path)!r} cannot be read: it is no picture") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"picture {str(path)!r} cannot be read: {reason_of(error)}") from None


def _as_bytes(array: np.ndarray) -> np.ndarray:
    import numpy as np

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
