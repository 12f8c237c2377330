"""Every operation has its rooms: kernel, definition, plain twin, test, benchmark, named alike."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from kinema import kernels
from kinema.kernels import dispatch, reference

KERNELS = Path(kernels.__file__).parent
TESTS = Path(__file__).parent


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_four_rooms(op) -> None:
    benchmarks = KERNELS.parent / "benchmarks" / "kernels"
    assert (KERNELS / f"{op}.py").is_file()
    assert (TESTS / f"test_{op}.py").is_file()
    assert (benchmarks / f"bench_{op}.py").is_file()
    assert callable(getattr(reference, op))


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


def test_importing_a_module_hides_no_function() -> None:
    import kinema.kernels.norm_modulate  # noqa: F401

    assert callable(kernels.norm_modulate)
