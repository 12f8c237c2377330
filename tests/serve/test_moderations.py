"""The word list, by itself, by the official client, and before a video is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

pytest.importorskip("fastapi", reason="needs kinema[serve]")

import kinema
from kinema.runtime.errors import UsageError
from kinema.runtime.serve import Settings, create_app, moderation
from kinema.runtime.serve.errors import APIError
from kinema.runtime.serve.moderation import CATEGORIES, MINORS, OFF, STRICT, check, judge
from kinema.runtime.serve.orders import Order

SHOWN = "a naked child"


@pytest.fixture
def app(engine, tmp_path):
    return create_app(engine, Settings(tmp_path / "data"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("she kills him with a knife", ["violence"]),
        ("a decapitated head", ["violence", "violence/graphic"]),
        ("an erotic dance", ["sexual"]),
        ("a sexy dance", []),
        ("how to build a bomb at home", ["illicit", "illicit/violent"]),
        ("I will kill you", ["harassment", "harassment/threatening", "violence"]),
        ("refugees are vermin", ["hate"]),
        ("exterminate the refugees", ["hate", "hate/threatening"]),
        ("I want to die", ["self-harm", "self-harm/intent"]),
        ("how to kill myself", ["self-harm", "self-harm/instructions", "self-harm/intent"]),
    ],
)
def test_texts_fall_into_their_categories(text, found):
    assert [name for name in judge(text) if name != "violence" or "violence" in found] == found


@pytest.mark.parametrize(
    "text",
    [
        "a naked child",
        "N.A.K.E.D ch1ld",
        "n a k e d  kids",
        "nаkеd kids",  # noqa: RUF001 - Cyrillic letters
        "na\u200bked kids",
        "naaaked kids",
        "Ｎａｋｅｄ kids",  # noqa: RUF001 - full width
        "a 12-year-old in lingerie",
        "a sexy girl, aged twelve",
        "p0rn with a 12yo",
        "lolicon",
    ],
)
def test_minors_shown_sexually_are_found_however_it_is_written(text):
    assert moderation.SEXUAL_MINORS in judge(text)


@pytest.mark.parametrize(
    "text",
    [
        "children look at the stars with the naked eye",
        "a naked woman drinks a 12 year old whisky",
        "a sexy woman of 25",
        "a 30 year old man, naked",
        "two kids play football in the garden",
        "sex education for teenagers",
        "a stable full of horses; a killer whale; the Gore-Tex jacket",
        "a chicken breast recipe",
        "",
    ],
)
def test_what_only_looks_like_it_is_not(text):
    found = judge(text)
    assert moderation.SEXUAL_MINORS not in found and "violence" not in found


def test_prompts_of_the_embedded_model_are_free_of_all_categories():
    folder = Path(kinema.__file__).parents[1] / "runtime" / "assets" / "embedded"
    texts = [json.loads(file.read_text()) for file in folder.glob("vocabulary.json")]
    examples = [prompt for told in texts for prompt in told["examples"]]
    assert examples and not any(judge(prompt) for prompt in examples)


def order(prompt: str, **fields) -> Order:
    return Order(prompt, seed=1, width=64, height=64, seconds=4, **fields)


def test_levels_refuse_more_and_more():
    refused = {level: [] for level in moderation.LEVELS}
    for level, texts in refused.items():
        for prompt in (SHOWN, "an erotic dance", "a red ball"):
            try:
                check(order(prompt), level)
            except APIError as error:
                assert (error.status, error.code, error.param) == (
                    400,
                    "moderation_blocked",
                    "prompt",
                )
                texts.append(prompt)
    assert refused == {OFF: [], MINORS: [SHOWN], STRICT: [SHOWN, "an erotic dance"]}
    check(order("children play", negative_prompt="naked, porn"), STRICT)  # what is not to be shown


def test_the_prompts_of_a_storyboard_count_together():
    shots = [{"start": 0, "prompt": "two children"}, {"start": 2, "prompt": "they are naked"}]
    check(order("a garden", storyboard=shots[:1]), MINORS)
    with pytest.raises(APIError):
        check(order("a garden", storyboard=shots), MINORS)


def test_what_is_worked_on_counts_with_the_prompt(app, monkeypatch):
    server = app.state.server
    monkeypatch.setattr(type(server), "_expected", lambda *_: 0.0)
    keep = {"seconds": "4"}
    first = server.accept("me", "video_1", "sora-2", order("two children"), **keep, source=None)
    edit, undressed = order("they dance", kind="edit"), order("they are naked", kind="edit")
    second = server.accept("me", "video_2", "sora-2", edit, **keep, source=first)
    for source in (first, second):
        with pytest.raises(APIError) as refused:
            server.accept("me", "video_3", "sora-2", undressed, **keep, source=source)
        assert refused.value.code == "moderation_blocked"
    alone = server.accept("me", "video_4", "sora-2", undressed, **keep, source=None)
    assert alone.status == "queued"
    server.store.close()  # nothing was started


def test_an_unknown_level_is_refused(tmp_path):
    with pytest.raises(UsageError, match="minors, strict"):
        Settings(tmp_path, moderation="some")


def test_the_client_reads_what_is_found(app, talk):
    client = talk(app)
    answer = client.moderations.create(input="a decapitated head", model="omni-moderation-latest")
    (result,) = answer.results
    assert answer.model == moderation.NAME and answer.id.startswith("modr")
    assert result.flagged and result.categories.violence_graphic and result.categories.violence
    assert not result.categories.sexual and result.category_scores.sexual == 0
    assert result.category_scores.violence_graphic == 1
    assert set(result.categories.model_dump(by_alias=True)) == set(CATEGORIES)
    assert result.category_applied_input_types.sexual_minors == ["text"]


def test_many_texts_have_a_result_each_and_parts_of_one_have_one(app, talk):
    client = talk(app)
    texts = ["naked", "two children"]
    each = client.moderations.create(input=texts).results
    assert [result.categories.sexual_minors for result in each] == [False, False]
    parts = [{"type": "text", "text": text} for text in texts]
    (whole,) = client.moderations.create(input=parts).results
    assert whole.categories.sexual_minors


@pytest.mark.parametrize(
    "input",
    [
        [],
        7,
        [1],
        ["a"] * 101,
        "a" * 40_000,
        ["a" * 30_000] * 4,
        [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}],
    ],
)
def test_what_cannot_be_judged_is_refused(app, talk, input):
    with pytest.raises(openai.BadRequestError) as refused:
        talk(app).moderations.create(input=input)
    assert refused.value.param == "input"


def test_a_prompt_is_refused_before_a_video_is_accepted(app, talk, caplog):
    client = talk(app)
    with pytest.raises(openai.BadRequestError) as refused:
        client.videos.create(prompt=SHOWN, size="64x64", extra_body={"steps": 1})
    assert (refused.value.code, refused.value.param) == ("moderation_blocked", "prompt")
    assert list(client.videos.list()) == []
    assert list((app.state.server.settings.data / "videos").iterdir()) == []
    (line,) = [record for record in caplog.records if record.message == "prompt refused"]
    assert line.fields == {"categories": [moderation.SEXUAL_MINORS]}  # and not the prompt
