"""The examples do what they say."""

import asyncio
import importlib.util
from pathlib import Path

import pytest

import kinema
from kinema.runtime.media.video import read_info

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def embed():
    spec = importlib.util.spec_from_file_location("embed", EXAMPLES / "embed.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def ask(port, *lines):
    """What a client that sends these lines is told, each line sent after the first answer."""
    reader, writer = await asyncio.open_connection("localhost", port)
    told = []
    for line in lines:
        writer.write(f"{line}\n".encode())
        told.append((await reader.readline()).decode().strip())
    told += [line.decode().strip() async for line in reader]
    writer.close()
    return told


def test_embed_serves_many_and_cancels(embed, tmp_path):
    async def act():
        async with kinema.load() as engine:
            server = await asyncio.start_server(embed.Server(engine, tmp_path).serve, "localhost")
            port = server.sockets[0].getsockname()[1]
            answers = await asyncio.gather(
                ask(port, "a red ball bounces"),
                ask(port, "a blue square moves left", "cancel"),
                ask(port, " "),
            )
            server.close()
            return answers

    whole, cancelled, empty = asyncio.run(asyncio.wait_for(act(), 300))
    assert whole[0] == "encode 1/1" and "denoise 1/20" in whole and "decode 33/33" in whole
    assert whole[-1] == f"done {tmp_path / '1.mp4'}"
    assert read_info(tmp_path / "1.mp4")["request"]["prompt"] == "a red ball bounces"
    assert cancelled[-1] == "error the request was cancelled"
    assert empty[0].startswith("error prompt is empty")
