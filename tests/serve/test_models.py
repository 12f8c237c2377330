"""Models, with the official client on an app in this process."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import openai
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

from kinema.runtime.models.wan.presets import WAN
from kinema.runtime.serve import Settings, create_app
from kinema.runtime.serve.routes import models
from kinema.runtime.serve.settings import HOSTED


@pytest.fixture
def client(engine, tmp_path, talk):
    engines = {"small": engine, "org/other": engine}
    settings = Settings(tmp_path / "data", aliases={"sora-2-pro": "org/other", "best": "small"})
    return talk(create_app(engines, settings))


def test_models_are_listed_by_all_of_their_names(client):
    models = {model.id: model for model in client.models.list()}
    assert list(models) == ["small", "org/other", *HOSTED, "best"]
    assert {model.object for model in models.values()} == {"model"}
    assert {model.owned_by for model in models.values()} == {"kinema"}
    told = {id: model.kinema["alias_of"] for id, model in models.items()}
    assert (told["small"], told["sora-2"], told["best"]) == (None, "small", "small")
    assert told["sora-2-pro"] == "org/other"


def test_a_model_says_what_it_makes(client):
    model = client.models.retrieve("sora-2")
    assert model.id == "sora-2" and model.created > 1.6e9
    facts = model.kinema
    assert (facts["size"], facts["fps"], facts["max_num_frames"]) == ("64x64", 8, 33)
    assert facts["max_seconds"] == 4.125 and facts["sound"] is True


@pytest.mark.parametrize(
    ("presets", "takes"),
    [
        ({}, ["edits"]),
        ({"conditions": "first"}, ["input_reference", "extensions", "edits"]),
        ({"conditions": "beside"}, ["input_reference", "extensions"]),
        ({"conditions": "beside", "last_frame": "needed"}, []),
        ({"conditions": "control"}, ["input_reference", "extensions", "edits"]),
    ],
)
def test_what_a_model_takes_follows_from_what_it_is_shown(presets, takes):
    checkpoint = SimpleNamespace(index={}, presets=replace(WAN, **presets))
    assert models._takes(SimpleNamespace(checkpoint=checkpoint)) == takes


def test_names_may_have_slashes(client):
    assert client.models.retrieve("org/other").id == "org/other"


def test_models_are_not_deleted_by_request(client):
    for name in ("small", "org/other", "sora-2"):
        with pytest.raises(openai.PermissionDeniedError) as refused:
            client.models.delete(name)
        assert refused.value.param == "model"
    assert len(list(client.models.list())) == 2 + len(HOSTED) + 1


def test_an_unknown_model_is_told_as_such(client):
    for call in (client.models.retrieve, client.models.delete):
        with pytest.raises(openai.NotFoundError) as refused:
            call("sora-3")
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
