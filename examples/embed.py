"""A server around the engine in fifty lines: submit, stream progress, cancel.

    python examples/embed.py            # then, elsewhere: nc localhost 8765

A client sends a prompt in a line and gets a line for every part that is done, then the name of the
video. It may send "cancel" meanwhile; closing the connection cancels too.
"""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import kinema

FOLDER = Path("videos")


class Server:
    """Many clients, one engine: their requests take turns step by step."""

    def __init__(self, engine: kinema.Engine, folder: Path = FOLDER) -> None:
        self.engine, self.folder = engine, folder
        self.numbers = itertools.count(1)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client: a prompt in, progress out."""
        prompt = (await reader.readline()).decode().strip()
        try:
            job = self.engine.submit(prompt)
            listening = asyncio.create_task(self.listen(reader, job))
            async for part in job.events():
                writer.write(f"{part.stage} {part.index}/{part.total}\n".encode())
                await writer.drain()
            video = await job
            listening.cancel()
            path = self.folder / f"{next(self.numbers)}.mp4"
            await asyncio.to_thread(video.save, path)
            writer.write(f"done {path}\n".encode())
        except kinema.KinemaError as error:  # a request that cannot run, or was cancelled
            writer.write(f"error {error}\n".encode())
        writer.close()

    async def listen(self, reader: asyncio.StreamReader, job: kinema.Job) -> None:
        """Cancel when the client says so, or has gone."""
        while line := await reader.readline():
            if line.strip() == b"cancel":
                break
        job.cancel()


async def main(host: str = "localhost", port: int = 8765) -> None:
    FOLDER.mkdir(exist_ok=True)
    async with kinema.load() as engine:
        server = await asyncio.start_server(Server(engine).serve, host, port)
        print(f"listening on {host}:{port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
