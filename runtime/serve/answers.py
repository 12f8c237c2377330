"""What the server answers, for its description: clients are generated of it. Routes answer with
plain dicts; nothing is converted on the way."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = int  # since 1970


class Answer(BaseModel):
    """What all of them have in common."""

    model_config = ConfigDict(extra="forbid")


class ErrorBody(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Answer):
    """What every refusal says."""

    error: ErrorBody


class Failure(Answer):
    """Why a video failed."""

    code: str
    message: str


class VideoKinema(BaseModel):
    """What was not asked for by name: once a video is completed, how it was made to fit."""

    model_config = ConfigDict(extra="allow")

    seed: int


class Video(Answer):
    id: str
    object: Literal["video"]
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: Seconds
    completed_at: Seconds | None
    expires_at: Seconds | None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None
    error: Failure | None
    kinema: VideoKinema


class Page(Answer):
    """The next one begins `after` the last id."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoPage(Page):
    data: list[Video]


class VideoDeleted(Answer):
    id: str
    object: Literal["video.deleted"]
    deleted: Literal[True]


class File(Answer):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: Seconds
    expires_at: Seconds | None
    filename: str
    purpose: str
    status: str
    status_details: str | None = None


class FilePage(Page):
    data: list[File]


class FileDeleted(Answer):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class ModelKinema(BaseModel):
    """What it makes by itself."""

    model_config = ConfigDict(extra="allow")

    alias_of: str | None


class Model(Answer):
    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: str
    kinema: ModelKinema


class Models(Answer):
    object: Literal["list"]
    data: list[Model]


class BatchError(Answer):
    """What keeps a batch from being worked on."""

    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(Answer):
    object: Literal["list"]
    data: list[BatchError]


class BatchCounts(Answer):
    total: int
    completed: int
    failed: int


class Batch(Answer):
    id: str
    object: Literal["batch"]
    endpoint: Literal["/v1/videos"]
    model: str | None
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None
    error_file_id: str | None
    created_at: Seconds
    in_progress_at: Seconds | None
    expires_at: Seconds
    finalizing_at: Seconds | None
    completed_at: Seconds | None
    failed_at: Seconds | None
    expired_at: Seconds | None
    cancelling_at: Seconds | None
    cancelled_at: Seconds | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None


class BatchPage(Page):
    data: list[Batch]


class Character(Answer):
    id: str
    object: Literal["character"]
    name: str
    created_at: Seconds


class CharacterPage(Page):
    data: list[Character]


class CharacterDeleted(Answer):
    id: str
    object: Literal["character.deleted"]
    deleted: Literal[True]


class EventTypes(Answer):
    object: Literal["list"]
    data: list[str]


class WebhookEndpoint(Answer):
    id: str
    object: Literal["webhook_endpoint"]
    name: str
    url: str
    event_types: list[str]
    created_at: Seconds
    updated_at: Seconds
    signing_secret_hint: str


class WebhookEndpointWithSecret(WebhookEndpoint):
    signing_secret: str


class WebhookEndpointPage(Page):
    data: list[WebhookEndpoint]


class WebhookEndpointDeleted(Answer):
    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookTest(Answer):
    """`status_code` is what the endpoint answered."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]


class Judged(Answer):
    """What the word list says of one text."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float]
    category_applied_input_types: dict[str, list[str]]


class Moderation(Answer):
    id: str
    model: str
    results: list[Judged]


class Origin(BaseModel):
    """What a manifest, or the marks, say."""

    model_config = ConfigDict(extra="allow")

    type: Literal["c2pa", "kinema"]
    outcome: Literal["detected", "not_detected"]
    model: str | None
    generated_at: str | None


class Check(Answer):
    object: Literal["content_provenance_check"]
    created_at: Seconds
    results: list[Origin]


class Provenance(BaseModel):
    """All that is known of where a video comes from."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: Literal["video.provenance"]
    kind: Literal["create", "edit", "extension"]
    made_from: list[dict[str, Any]]


class Alive(Answer):
    status: Literal["ok", "stopping"]


class Readiness(Answer):
    checks: dict[str, bool]
