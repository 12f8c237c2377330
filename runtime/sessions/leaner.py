"""What is done where memory runs out in a request all the same: it goes on in a leaner setting."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING

from ..errors import KinemaError
from ..planning.fit import leaner

if TYPE_CHECKING:
    from ..engine import Engine
    from ..planning.plan import Plan


def step_down(engine: Engine, plan: Plan, stage: str, reason: str) -> tuple[Plan, str]:
    """The plan in a leaner setting, which the engine has adopted, and a note of what changed.

    stage: where memory ran out, of "bind", "denoise" and "decode". reason: what the device said.
    Raises `KinemaError` where there is no leaner setting.
    """
    now = replace(plan.setting, offload=engine.offload.mode)
    runner = engine.runner
    setting = leaner(now, stage, plan, engine.checkpoint, runner.device, runner.asked)
    if setting is None or not engine.offload_as(setting.offload):
        raise KinemaError(
            f"out of memory in {stage} ({reason}), and there is no leaner way to run it; fewer"
            " frames, a smaller size or another offload would need less"
        )
    down = replace(plan, setting=setting)
    return down, f"out of memory in {stage}: went on with {_changed(plan, down)}"


def _changed(before: Plan, after: Plan) -> str:
    """How the second's setting differs from the first's."""
    names = [field.name for field in fields(after.setting)]
    pairs = ((name, getattr(before.setting, name), getattr(after.setting, name)) for name in names)
    return ", ".join(f"{name} {new} instead of {old}" for name, old, new in pairs if old != new)
