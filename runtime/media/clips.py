"""Pictures and clips as users give them: what may be one, its size, its frames.

Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import reason_of
from .pictures import opened

PICTURE = "a path, a PIL image or an array (height, width, 3)"
CLIP = "a path of a video, a list of pictures or an array (frames, height, width, 3)"
MASK = "a number, a picture or a clip of masks"
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # the tag of a photograph on its side


def is_path(media: Any) -> bool:
    return isinstance(media, (str, os.PathLike))


def is_picture(media: Any) -> bool:
    """Whether it may be one picture, by its type and shape alone."""
    return is_path(media) or _is_pil(media) or (_axes(media) == 3 and media.shape[-1] == 3)


def is_clip(media: Any) -> bool:
    """Whether it may be several pictures, by its type and shape alone."""
    in_memory = isinstance(media, (list, tuple)) or (_axes(media) == 4 and media.shape[-1] == 3)
    return is_path(media) or in_memory


def is_mask(media: Any) -> bool:
    """Whether it is one mask in memory: a PIL image, or an array of two axes."""
    return _axes(media) == 2 or _is_pil(media)


def is_masks(media: Any) -> bool:
    """Whether it may be one mask, or several."""
    return is_clip(media) or is_mask(media) or _axes(media) == 3


def kind_of(media: Any) -> str:
    """What was given, for a refusal."""
    return f"an array {tuple(media.shape)}" if _axes(media) else f"a {type(media).__name__}"


def describe(media: Any) -> Any:
    """Media in words that fit into JSON: a path, a number, or the size of what is in memory."""
    if is_path(media):
        return os.fspath(media)
    if isinstance(media, (int, float)):
        return media
    if isinstance(media, (list, tuple)):
        return [describe(picture) for picture in media]
    return f"{media.width}x{media.height}" if _is_pil(media) else kind_of(media)


def open_frames(media: Any) -> Iterator[Any]:
    """The frames of a video file, or of what is in memory, one by one."""
    return _decode(Path(media).expanduser()) if is_path(media) else iter(media)


def count_frames(media: Any) -> int:
    """How many frames there are; a file is read through."""
    return sum(1 for _ in open_frames(media)) if is_path(media) else len(media)


def picture_size(picture: Any) -> tuple[int, int]:
    """Height and width. Raises `UsageError` for a file that is no picture."""
    if _axes(picture):
        return int(picture.shape[0]), int(picture.shape[1])
    if _is_pil(picture):
        return picture.height, picture.width
    with opened(picture) as image:
        turned = image.getexif().get(ORIENTATION, 1) in LYING
        width, height = reversed(image.size) if turned else image.size
    return height, width


def mask_picture(mask: Any) -> Any:
    """A mask as a picture: an array of two axes, or of truths, gets what it lacks."""
    if not _axes(mask):
        return mask
    import numpy as np

    array = np.asarray(mask)
    array = array * np.uint8(255) if array.dtype == bool else array
    return np.stack([array] * 3, axis=-1) if array.ndim == 2 else array


def _axes(media: Any) -> int:
    return len(getattr(media, "shape", ()))


def _is_pil(media: Any) -> bool:
    return hasattr(media, "getexif")


def _decode(path: Path) -> Iterator[Any]:
    import av.error

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except (OSError, ValueError, IndexError, av.error.FFmpegError) as error:
        raise UsageError(f"video {str(path)!r} cannot be read: {reason_of(error)}") from None
