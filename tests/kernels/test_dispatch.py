"""The table of backends: explicit choices succeed or raise, automatic ones say what they took."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from typer.testing import CliRunner

from kinema.kernels import _requirements, cli, dispatch, torch_backend


def test_takes_the_first_that_works_and_says_so(caplog) -> None:
    with caplog.at_level(logging.INFO, "kinema.kernels"):
        choice = dispatch.choose("norm_modulate", "cpu")
    assert choice.backend == "torch"
    assert choice.function is torch_backend.norm_modulate
    assert "not triton (Triton kernels run on cuda, not on cpu)" in choice.reason
    assert "norm_modulate on cpu takes torch" in caplog.text


def test_an_explicit_choice_raises_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match="norm_modulate cannot use triton: Triton kernels run"):
        dispatch.choose("norm_modulate", "cpu", "triton")
    assert dispatch.choose("norm_modulate", "cpu", "torch").reason == "asked for"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is present")
def test_says_that_no_gpu_is_there() -> None:
    with pytest.raises(RuntimeError, match="no GPU is present"):
        dispatch.choose("gate_residual", "cuda", "triton")


def test_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_requirements, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="pip install triton"):
        dispatch.choose("gate_residual", "cuda", "triton")


def test_unknown_names_are_answered_with_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown operation 'norm'; known: norm_modulate, "):
        dispatch.choose("norm", "cpu")
    with pytest.raises(ValueError, match="has no backend 'cuda'; it has triton, torch"):
        dispatch.choose("norm_modulate", "cpu", "cuda")


def test_the_list() -> None:
    result = CliRunner().invoke(cli.app, ["list", "--device", "cpu", "--json"])
    rows = json.loads(result.stdout)
    assert {row["op"] for row in rows} == dispatch.TABLE.keys()
    assert all(row.keys() == {"op", "backend", "available", "reason"} for row in rows)
    assert all(row["available"] == (row["reason"] is None) for row in rows)
    assert {"op": "norm_modulate", "backend": "torch", "available": True, "reason": None} in rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arch", "sm_70"], "--arch sm_70 is not known; known: sm_80, sm_89"),
        (["--op", "norm"], "--op norm is not known; known: norm_modulate"),
    ],
)
def test_check_refuses_unknown_names(arguments, message) -> None:
    result = CliRunner().invoke(cli.app, ["check", *arguments], standalone_mode=False)
    assert message in str(result.exception)
