"""SQLite and PostgreSQL: opened, held by one server, lost and found again."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

import sqlalchemy
from sqlalchemy import text
from starlette.testclient import TestClient

import kinema
from kinema.runtime.cli import run
from kinema.runtime.serve import Settings, create_app, databases, logs, videos
from kinema.runtime.serve.databases import open_engine
from kinema.runtime.serve.routes import events
from kinema.runtime.serve.store import Store
from kinema.runtime.serve.videos import Video

ASKED = {"prompt": "a red ball bounces", "size": "64x64", "steps": 2, "seed": 3}
SECRET = "of-the-tests-0123"


@pytest.fixture
def store(database_url):
    made = Store(database_url)
    made.upgrade()
    yield made
    made.close()


def video(number: int, **fields) -> Video:
    values = {"owner": "me", "model": "sora-2", "prompt": "a", "seconds": "4", "size": "64x64"}
    values |= {"order": {"seed": 2**62}, "created_at": 2**32, "id": f"video_{number}"}
    return Video(**{**values, **fields})


# ---- rows ----------------------------------------------------------------------------------------


def test_what_is_kept_comes_back_as_it_was(store):
    kept = {
        "prompt": "Ein Ball, \U0001f534, 'quoted'; DROP TABLE videos; --",
        "order": {"seed": 2**62, "nested": [1.5, None, "\u00e9"]},
        "error": {"code": "c", "message": "\U0001f534"},
        "expires_at": 2**40,
        "bytes": 2**41,
        "expected": 0.1,
    }
    with store.session() as session:
        session.add(video(1, **kept))
        session.add(video(2))
    with store.session() as session:
        found = videos.find(session, "me", "video_1")
        other = videos.find(session, "me", "video_2")
        assert videos.bytes_kept(session) == 2**41
        assert videos.work_ahead(session) == pytest.approx(0.1)
        assert videos.waiting(session) == videos.waiting(session, "me") == 2
    assert {name: getattr(found, name) for name in kept} == kept
    assert (other.error, other.report, other.bytes) == (None, None, 0)
    assert (found.created_at, found.number < other.number) == (2**32, True)


def test_a_body_that_fails_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.session() as session:
        session.add(video(1))
        session.flush()
        raise RuntimeError
    with pytest.raises(sqlalchemy.exc.IntegrityError), store.session() as session:
        session.add_all([video(1), video(1)])
    with store.session() as session:
        assert videos.waiting(session) == 0


def test_pages_hold_everything_once_and_in_order_while_others_write(store):
    def add(writer: int) -> None:
        for count in range(10):
            with store.session() as session:
                session.add(video(100 * writer + count))

    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for newest_first in (True, False):
        seen, after, more = [], None, True
        while more:
            with store.session() as session:
                page, more = videos.page(session, "me", after, 7, newest_first)
            seen += page
            after = page[-1].id
        assert len({one.id for one in seen}) == len(seen) == 40
        numbers = [one.number for one in seen]
        assert numbers == sorted(numbers, reverse=newest_first)
    for writer in range(4):  # each one's own, as they were accepted
        own = [one.id for one in seen if int(one.id[6:]) // 100 == writer]
        assert own == [f"video_{100 * writer + count}" for count in range(10)]


def test_a_number_does_not_come_again(store):
    with store.session() as session:
        session.add(video(1))
    with store.session() as session:
        first = videos.find(session, "me", "video_1")
        session.delete(first)
    with store.session() as session:
        session.add(video(2))
    with store.session() as session:
        assert videos.find(session, "me", "video_2").number > first.number


def test_who_wants_to_change_a_video_waits_for_who_does(store):
    with store.session() as session:
        session.add(video(1))
    has, seen = threading.Event(), []

    def end() -> None:
        with store.session() as session:
            found = videos.locked(session, "video_1")
            has.set()
            time.sleep(0.2)
            found.status = videos.COMPLETED

    def cancel() -> None:
        has.wait()
        with store.session() as session:
            seen.append(videos.locked(session, "video_1").status)

    threads = [threading.Thread(target=work) for work in (end, cancel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [videos.COMPLETED]
    with store.session() as session:
        assert videos.locked(session, "video_2") is None


# ---- opening -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "cannot be read"),
        (f"postgresql://me:{SECRET}@host:port/name", "cannot be read"),
        (f"mysql://me:{SECRET}@host/name", "'mysql'; sqlite and postgresql work"),
        ("sqlite+aiosqlite:///a.db", r"'sqlite\+aiosqlite'; sqlite and postgresql work"),
    ],
)
def test_a_url_of_no_database_is_refused_in_a_line(url, said):
    with pytest.raises(kinema.UsageError, match=said) as refused:
        Store(url)
    assert "\n" not in str(refused.value) and SECRET not in str(refused.value)


def test_a_missing_driver_is_told_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(kinema.UsageError, match=r"pip install 'kinema\[postgres\]'"):
        Store("postgres://host/name")


def test_a_server_that_is_down_ends_the_command_with_a_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("psycopg", reason="needs kinema[postgres]")
    monkeypatch.setattr(logs, "log_to_stderr", lambda: None)
    url = f"postgresql://me:{SECRET}@127.0.0.1:1/name"
    code = run(["serve", "--port", "0", "--data", str(tmp_path / "data"), "--database-url", url])
    said = capsys.readouterr().err.strip()
    assert code == 1 and "\n" not in said and SECRET not in said
    assert said.startswith("kinema: cannot open the database:") and "refused" in said


def test_tables_of_a_later_version_are_left_alone(store):
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(kinema.KinemaError, match=r"cannot use the database.*9999"):
        store.upgrade()


def test_a_folder_is_free_again_after_a_start_that_failed(engine, tmp_path):
    with pytest.raises(kinema.UsageError, match="cannot be read"):
        create_app(engine, Settings(tmp_path / "data", database_url="nonsense"))
    with TestClient(create_app(engine, Settings(tmp_path / "data"))) as client:
        assert client.get("/healthz").status_code == 200


# ---- one server for a database -------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    """Whoever wants a database that is taken does not wait for it."""
    own = ("SET lock_timeout = '50ms'", *databases.CLAIMING[1:])
    monkeypatch.setattr(databases, "CLAIMING", own)


def test_a_database_has_one_server(postgres_url, impatient):
    one, two = Store(postgres_url), Store(postgres_url)
    one.upgrade()
    with pytest.raises(kinema.UsageError, match="served by another process"):
        two.upgrade()
    one.ping()
    one.close()
    two.upgrade()
    with pytest.raises(kinema.UsageError, match="served by another process"):
        one.ping()
    two.close()


def test_a_lost_claim_is_taken_again_unless_another_was_faster(postgres_url, impatient):
    one, two = Store(postgres_url), Store(postgres_url)
    one.upgrade()
    disconnect(postgres_url)
    one.ping()
    with pytest.raises(kinema.UsageError, match="served by another process"):
        two.upgrade()
    disconnect(postgres_url)
    two.upgrade()
    with pytest.raises(kinema.UsageError, match="served by another process"):
        one.ping()
    for store in (one, two):
        store.close()


def test_a_server_that_was_just_killed_is_waited_for(postgres_url):
    one, two = Store(postgres_url), Store(postgres_url)
    one.upgrade()
    threading.Timer(0.3, one.close).start()
    two.upgrade()
    two.close()


# ---- a whole server ------------------------------------------------------------------------------


def finished(client, id: str) -> dict:
    for _ in range(600):
        answer = client.get(f"/v1/videos/{id}")
        if answer.status_code == 200 and answer.json()["status"] not in videos.PENDING:
            return answer.json()
        time.sleep(0.05)
    raise AssertionError(answer.text)


def running(client):
    """The server's runs, once a video is being made."""
    runs = client.app.state.server.runs
    while not runs.live:
        time.sleep(0.01)
    return runs


def serve(engine, tmp_path, database_url):
    return TestClient(create_app(engine, Settings(tmp_path / "data", database_url=database_url)))


def test_videos_live_through_a_restart(engine, tmp_path, database_url):
    with serve(engine, tmp_path, database_url) as client:
        done = client.post("/v1/videos", json=ASKED).json()["id"]
        whole = finished(client, done)
        long = client.post("/v1/videos", json={**ASKED, "steps": 24}).json()["id"]
        while client.get(f"/v1/videos/{long}").json()["progress"] < 5:
            time.sleep(0.01)
    with serve(engine, tmp_path, database_url) as client:
        assert client.get(f"/v1/videos/{done}").json() == whole
        assert finished(client, long)["status"] == "completed"
        assert [v["id"] for v in client.get("/v1/videos").json()["data"]] == [long, done]
        assert client.delete(f"/v1/videos/{done}").json()["deleted"]
        assert client.get(f"/v1/videos/{done}").status_code == 404


def test_connections_that_were_lost_are_made_again(engine, tmp_path, postgres_url):
    with serve(engine, tmp_path, postgres_url) as client:
        made = client.post("/v1/videos", json={**ASKED, "steps": 10}).json()["id"]
        running(client)
        disconnect(postgres_url)
        assert client.get("/v1/videos").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert finished(client, made)["status"] == "completed"


def test_without_its_database_a_server_says_so_and_goes_on_later(
    engine, tmp_path, postgres_url, caplog
):
    with serve(engine, tmp_path, postgres_url) as client:
        made = client.post("/v1/videos", json={**ASKED, "steps": 10}).json()["id"]
        runs = running(client)
        with closed(postgres_url):
            for answer in (
                client.get("/v1/videos"),
                client.get(f"/v1/videos/{made}"),
                client.post("/v1/videos", json=ASKED),
            ):
                assert answer.status_code == 503 and answer.headers["retry-after"] == "5"
                assert answer.json()["error"]["code"] == "database_unavailable"
            checks = client.get("/readyz")
            assert checks.status_code == 503 and checks.json()["checks"]["database"] is False
            assert client.get("/healthz").status_code == 200
            assert client.get("/metrics").status_code == 200
            until = time.monotonic() + 60
            while not runs._unwritten and time.monotonic() < until:  # done, and not noted yet
                time.sleep(0.02)
        assert finished(client, made)["status"] == "completed"
        assert len(list((tmp_path / "data" / "videos").iterdir())) == 1
    for said in ("the database does not answer", "work on accepted videos waits"):
        assert said in caplog.text
    assert "Traceback" not in caplog.text


def test_a_stream_of_events_outlives_a_database_that_does_not_answer(monkeypatch):
    done = {"id": "video_1", "status": "completed"}
    answers = [lost(), lost(), done]

    def find(*_):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    class Request:
        async def is_disconnected(self):
            return False

    async def collect():
        server = SimpleNamespace(runs=SimpleNamespace(live={}), ready=True)
        return [line async for line in events._stream(Request(), server, "me", "video_1")]

    monkeypatch.setattr(events, "_find", find)
    monkeypatch.setattr(events, "LOOK_EVERY", 0.0)
    (line,) = asyncio.run(collect())
    assert line == f"event: video\ndata: {json.dumps(done)}\n\n"


def lost() -> Exception:
    return sqlalchemy.exc.OperationalError("SELECT", {}, OSError("the connection was lost"))


@contextmanager
def other(url: str):
    """A connection that is not to the database itself."""
    target = sqlalchemy.make_url(url)
    engine = open_engine(target.set(database="postgres").render_as_string(hide_password=False))
    with engine.connect() as connection:
        yield connection.execution_options(isolation_level="AUTOCOMMIT"), target.database
    engine.dispose()


def disconnect(url: str) -> None:
    """End all connections to a database."""
    ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = :name"
    with other(url) as (connection, name):
        assert all(connection.execute(text(ended), {"name": name}).scalars())


@contextmanager
def closed(url: str):
    """Nobody can connect to a database."""
    with other(url) as (connection, name):
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    disconnect(url)
    yield
    with other(url) as (connection, name):
        connection.exec_driver_sql(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
