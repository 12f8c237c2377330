"""What an operator watches, for Prometheus; a registry for each server."""

from __future__ import annotations

import math
import resource
import sys
from typing import TYPE_CHECKING

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from . import videos

if TYPE_CHECKING:
    from .making import Making
    from .server import Server

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """Counts and times of one server."""

    def __init__(self, server: Server) -> None:
        self.server, self.registry = server, CollectorRegistry()
        own = self.registry
        self.videos = Counter("kinema_videos", "Videos that ended.", ["status"], registry=own)
        self.refusals = Counter(
            "kinema_refusals", "Requests refused.", ["status", "code"], registry=own
        )
        self.stage = Histogram(
            "kinema_stage_seconds",
            "Work on a stage of one video.",
            ["stage"],
            buckets=SECONDS,
            registry=own,
        )
        self.step = Histogram("kinema_step_seconds", "One step.", buckets=SECONDS, registry=own)
        self.answer = Histogram(
            "kinema_http_seconds", "Answers.", ["method", "route"], buckets=SECONDS, registry=own
        )
        gauges = {
            "kinema_queued_videos": ("Videos that wait.", self._queued),
            "kinema_running_videos": ("Videos that take turns.", lambda: len(server.runs.live)),
            "kinema_memory_bytes": ("Most of the host's memory that was used.", _memory),
            "kinema_device_memory_bytes": ("Device memory in use.", _device_memory),
        }
        for name, (what, value) in gauges.items():
            Gauge(name, what, registry=own).set_function(value)

    def ended(self, status: str, making: Making | None) -> None:
        """A video ended, well or not."""
        self.videos.labels(status).inc()
        if making is None:
            return
        for stage, seconds in making.seconds.items():
            self.stage.labels(stage).observe(seconds)
        if "denoise" in making.seconds:
            steps = len(making.parts) * making.plan.num_inference_steps
            self.step.observe(making.seconds["denoise"] / steps)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)

    def _queued(self) -> float:
        try:
            with self.server.store.session() as session:
                return videos.waiting(session)
        except SQLAlchemyError:
            return math.nan  # what else there is to see matters all the more


def _memory() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _device_memory() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
