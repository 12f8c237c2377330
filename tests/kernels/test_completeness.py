"""Every operation has its rooms, named alike: kernel, operator, compilations, definition, twin,
test, benchmark."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
import torch

from kinema import kernels
from kinema.kernels import dispatch, reference, torch_backend

KERNELS = Path(kernels.__file__).parent
TESTS = Path(__file__).parent


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_every_room(op) -> None:
    benchmarks = KERNELS.parent / "benchmarks" / "kernels"
    assert (KERNELS / f"{op}.py").is_file()
    assert (TESTS / f"test_{op}.py").is_file()
    assert (benchmarks / f"bench_{op}.py").is_file()
    assert callable(getattr(reference, op))
    assert callable(getattr(torch_backend, op))
    module = import_module(f"kinema.kernels.{op}")
    assert callable(module.compilations)
    assert getattr(torch.ops.kinema, op).default is module._op


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_one_signature(op) -> None:
    """The public function and the definition take the same arguments in the same way."""
    defined = inspect.signature(getattr(reference, op)).parameters
    public = inspect.signature(getattr(kernels, op)).parameters
    assert list(public) == list(defined)
    for name, parameter in defined.items():
        assert (public[name].kind, public[name].default) == (parameter.kind, parameter.default)


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_a_plain_backend_everywhere(op) -> None:
    chosen = dispatch.choose(op, "cpu")
    signature = inspect.signature(chosen.function).parameters
    assert list(signature) == list(inspect.signature(getattr(reference, op)).parameters)


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_every_backend_takes_what_the_definition_takes(op) -> None:
    """Without the packages that some of them call."""
    for entry in dispatch.backends(op):
        taken = inspect.signature(entry.load()).parameters
        assert taken.keys() >= inspect.signature(getattr(reference, op)).parameters.keys()


def test_what_the_package_names_is_there() -> None:
    assert kernels.__all__ == sorted(kernels._HOMES)
    assert all(getattr(kernels, name) is not None for name in kernels.__all__)


def test_importing_a_module_hides_no_function() -> None:
    import kinema.kernels.norm_modulate  # noqa: F401

    assert callable(kernels.norm_modulate)
