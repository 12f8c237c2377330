"""A script of somebody who made videos with the hosted API, and goes on with `kinema serve`.

    kinema serve --data videos                                       # in one terminal
    python examples/sora_migration.py "a red ball bounces on the grass"   # in another

What is new is the client's `base_url` and its key. With OPENAI_BASE_URL and OPENAI_API_KEY set,
even `OpenAI()` stays as it was.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import openai

# The client still announces the end of the hosted service.
warnings.filterwarnings("ignore", "The Sora API", DeprecationWarning)

client = openai.OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),  # as --api-key-file has it, if there is one
)


def make(prompt: str, folder: Path) -> str:
    """A video and its thumbnail, as files; the video's id."""
    video = client.videos.create(model="sora-2", prompt=prompt, seconds="4", size="1280x720")
    print(f"{video.id}: {video.status}")
    video = client.videos.poll(video.id)
    save(video, folder)
    return video.id


def remix(source: str, prompt: str, folder: Path) -> None:
    """The same again, with another prompt."""
    video = client.videos.remix(source, prompt=prompt)
    save(client.videos.poll(video.id), folder)


def save(video: openai.types.Video, folder: Path) -> None:
    if video.status == "failed":
        sys.exit(f"{video.id} failed: {video.error.message}")
    for variant, suffix in (("video", "mp4"), ("thumbnail", "webp")):
        file = folder / f"{video.id}.{suffix}"
        client.videos.download_content(video.id, variant=variant).write_to_file(file)
        print(file)


def main(prompt: str, other: str = "a blue square moves left at night") -> None:
    folder = Path.cwd()
    try:
        remix(make(prompt, folder), other, folder)
    except openai.BadRequestError as error:  # what the model cannot do, and what it can
        sys.exit(error.body["message"])
    for video in client.videos.list(limit=5):
        print(video.id, video.status, video.size, video.prompt)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["a red ball bounces on the grass"])
