"""The server against its own description: whatever is asked, in a form that it describes or not,
the answer is one that it describes, and never a failure of the server.

Bounded by numbers of requests, drawn from a fixed seed: EXAMPLES of each kind for each route. No
video is made meanwhile; one of each status lies in the database.
"""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")
pytest.importorskip("schemathesis", reason="needs schemathesis")

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks
from sqlalchemy import delete

import kinema
from kinema.runtime.serve import Settings, create_app
from kinema.runtime.serve.limits import Limits
from kinema.runtime.serve.orders import Order
from kinema.runtime.serve.pictures import SHEET, THUMBNAIL
from kinema.runtime.serve.videos import COMPLETED, FAILED, IN_PROGRESS, QUEUED, Video

EXAMPLES = 25
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
    checks.ignored_auth,
]
KEY = "a-key-for-the-fuzzer"
BOUNDS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
IDS = {f"video_{status}": status for status in (QUEUED, IN_PROGRESS, COMPLETED, FAILED)}
ENDED = ["video_completed", "video_failed"]  # the stream of another would wait for its end


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """It accepts, and makes nothing: its threads are not started."""
    folder = tmp_path_factory.mktemp("fuzzed")
    keys = folder / "keys"
    keys.write_text(KEY)
    keys.chmod(0o600)
    limits = Limits(max_queued=100_000, fetch_seconds=0.2)
    app = create_app(kinema.load(), Settings(folder / "data", key_file=keys, limits=limits))
    server = app.state.server
    server.ready = True
    yield app
    server.stop()


def put_videos(server) -> None:
    """One of each status, again if it was deleted."""
    order = Order("a red ball", seed=1, width=64, height=64, seconds=4).as_dict()
    about = {"model": "sora-2", "prompt": "a red ball", "seconds": "4", "size": "64x64"}
    about |= {"owner": server.keys.owner_of(KEY), "order": order, "created_at": 1}
    with server.store.session() as session:
        session.execute(delete(Video).where(Video.id.in_(IDS)))
        for id, status in IDS.items():
            error = {"code": "cancelled", "message": "it was"} if status == FAILED else None
            session.add(Video(id=id, status=status, error=error, **about))
    folder = server.folder("video_completed")
    folder.mkdir(exist_ok=True)
    for name in (THUMBNAIL, SHEET):
        (folder / name).write_bytes(bytes(100))


@pytest.fixture(scope="module")
def described(app):
    async def without_lifespan(scope, receive, send) -> None:
        if scope["type"] == "http":  # schemathesis opens and closes an app for every request
            return await app(scope, receive, send)
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})

    return schemathesis.openapi.from_asgi("/openapi.json", without_lifespan)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_those_that_the_description_has(app, described, mode):
    asked = 0
    for operation in (found.ok() for found in described.get_all_operations()):
        if mode.is_positive or operation.body or list(operation.iter_parameters()):
            put_videos(app.state.server)
            ask(operation, mode)
            asked += 1
    assert asked > 20


def ask(operation, mode: GenerationMode) -> None:
    ids = st.sampled_from(ENDED if operation.path.endswith("/events") else list(IDS))

    @seed(8)
    @BOUNDS
    @given(case=operation.as_strategy(generation_mode=mode), known=st.none() | ids)
    def one(case, known: str | None) -> None:
        if known is not None and "video_id" in case.path_parameters:
            case.path_parameters["video_id"] = known
        case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {KEY}"})

    one()
