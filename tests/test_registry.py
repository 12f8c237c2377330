"""What the registry says is there, and what a plan needs of it does not bring torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kinema.runtime import registry
from kinema.runtime.errors import KinemaError

PARTS = registry.VAES | registry.SOUNDS
SIZES = [row.sizes for row in (registry.TRANSFORMERS | PARTS).values()]
PLANNED = [*SIZES, *registry.TEXT_ENCODERS.values(), *registry.PIPELINES.values()]


@pytest.mark.parametrize("name", registry.TRANSFORMERS)
def test_a_transformers_row(name):
    row = registry.TRANSFORMERS[name]
    config = registry.at(row.config).from_dict({})
    assert config.weight_table().keep_fp32 == registry.at(row.sizes).KEEP_FP32
    assert callable(registry.at(row.model).bind)
    if row.original is not None:
        assert registry.at(row.original).ORIGINAL.marks


@pytest.mark.parametrize("name", PARTS)
def test_another_parts_row(name):
    row = PARTS[name]
    assert callable(registry.at(row.opens))
    assert row.config is None or callable(registry.at(row.config).from_dict)


def test_a_plan_needs_no_torch():
    code = f"""
import sys
from kinema.runtime import registry
assert all(callable(registry.at(place)) for place in {PLANNED!r})
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_class_that_is_not_there_is_told_in_a_line():
    with pytest.raises(KinemaError, match=r"^vae of 'x' is a Foo, which is not known; known: Auto"):
        registry.row(registry.VAES, "Foo\nBar", "vae of 'x'")
