"""Parts of profiling that need no model: time, memory, operators, kernels, ceilings."""

from __future__ import annotations

import mmap
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from kinema.runtime.execution import pack
from kinema.runtime.profiling import ceilings as ceilings_module
from kinema.runtime.profiling import kineto, memory, operators
from kinema.runtime.profiling.attribution import StepCalls, Timed, Watching, _by_kernels, split
from kinema.runtime.profiling.ceilings import Ceilings
from kinema.runtime.profiling.classes import (
    ATTENTION,
    CONVOLUTIONS,
    COPIES,
    ELEMENTWISE,
    GAPS,
    PRODUCTS,
)
from kinema.runtime.profiling.operators import Call
from kinema.runtime.profiling.spans import BESIDE, MAIN, WAIT, Span, exclusive
from kinema.runtime.profiling.watch import Stopwatch

CPU = torch.device("cpu")


# ---- time ----------------------------------------------------------------------------------------


def test_the_innermost_stage_has_the_moment() -> None:
    spans = [Span("decode", 1, 9), Span("sound", 3, 5), Span("load", 4, 5), Span("sign", 9, 10)]
    found = exclusive(spans, 0, 12)
    assert found == {"other": 3, "decode": 6, "sound": 1, "load": 1, "sign": 1}


def test_waiting_is_the_time_of_what_is_waited_for() -> None:
    """Overlap goes to the stage that holds the others up: encoding beside decoding is free."""
    spans = [
        Span("decode", 0, 4),
        Span("mux", 0, 3, BESIDE),
        Span("mark", 1, 2, BESIDE),
        Span(WAIT, 4, 10),
        Span("mux", 4, 8, BESIDE),
        Span("mark", 5, 7, BESIDE),
    ]
    assert exclusive(spans, 0, 10) == {"decode": 4, "mux": 4, "mark": 2}


def test_stages_of_two_threads_sum_to_the_time_that_passed() -> None:
    watch = Stopwatch()
    watch.begin(CPU)

    def beside() -> None:
        with watch.stage("mux"), watch.stage("mark"):
            time.sleep(0.02)

    with watch.stage("decode"):
        thread = threading.Thread(target=beside)
        thread.start()
        with watch.stage(WAIT):
            thread.join()
    with watch.stepping(0), watch.inside("guidance"):
        time.sleep(0.005)
    watch.end()
    found = watch.seconds()
    assert sum(found.values()) == pytest.approx(watch.ended - watch.started)
    assert found["mark"] >= 0.015 and found["guidance"] >= 0.005
    step = next(span for span in watch.spans if span.stage == "denoise")
    assert step.step == 0 and step.thread == MAIN


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [memory.HighWater, memory.Sampler])
def test_a_stage_is_told_its_own_peak(kind: type) -> None:
    try:
        gauge = kind()
    except OSError:
        pytest.skip("this system does not let a process begin its high-water mark anew")
    peaks, size = memory.Peaks(gauge, "before"), 64 << 20
    time.sleep(0.02)
    peaks.enter("large")
    with mmap.mmap(-1, size) as large:  # an allocator may hand out what it has held for long
        large.write(bytes(size // 2))
        large.write(bytes(size - size // 2))
        time.sleep(0.02)  # longer than a sampler sleeps
    peaks.enter("after")
    time.sleep(0.02)
    found = peaks.close()
    assert found["large"] - found["before"] > 0.9 * size
    assert found["large"] - found["after"] > 0.9 * size


# ---- operators -----------------------------------------------------------------------------------


def seen(function) -> list[Call]:
    with torch.inference_mode(), Watching(on_device=False) as watching:
        function()
    return [timed.call for timed in watching.seen]


def only(function) -> Call:
    (call,) = (call for call in seen(function) if call.kind is not None)
    return call


X = torch.ones(2, 5, 8)
WEIGHT, BIAS = torch.ones(16, 8), torch.ones(16)
PICTURE, KERNEL = torch.ones(1, 4, 6, 6), torch.ones(8, 4, 3, 3)
HEADS = torch.ones(2, 3, 5, 8)
PRODUCT = 2 * 10 * 8 * 16
CALLS = [
    ("aten.linear", lambda: F.linear(X, WEIGHT, BIAS), PRODUCTS, PRODUCT),
    ("aten.addmm", lambda: torch.addmm(BIAS, X[0], WEIGHT.T), PRODUCTS, PRODUCT // 2),
    ("aten.bmm", lambda: torch.bmm(X, X.mT), PRODUCTS, 2 * 2 * 5 * 8 * 5),
    (
        "aten.scaled_dot_product_attention",
        lambda: F.scaled_dot_product_attention(HEADS, HEADS[:, :, :3], HEADS[:, :, :3]),
        ATTENTION,
        4 * 2 * 3 * 5 * 3 * 8,
    ),
    ("aten.conv2d", lambda: F.conv2d(PICTURE, KERNEL), CONVOLUTIONS, 2 * 8 * 16 * 36),
    ("aten.mul", lambda: X * 2.0, ELEMENTWISE, 0),
    ("aten.cat", lambda: torch.cat([X, X]), COPIES, 0),
]


@pytest.mark.parametrize(("name", "function", "kind", "flops"), CALLS, ids=[c[0] for c in CALLS])
def test_class_and_flops(name: str, function, kind: str, flops: int) -> None:
    call = only(function)
    assert (call.name, call.kind, call.flops) == (name, kind, flops)


def test_packed_layers_are_products() -> None:
    if not pack.can_pack():
        pytest.skip("this build of PyTorch has no packed layers")
    layer = pack.PackedLinear(torch.nn.Linear(8, 16), gelu=True)
    call = only(lambda: layer(X))
    assert (call.kind, call.flops) == (PRODUCTS, PRODUCT)
    assert call.bytes >= X.nbytes + 2 * 5 * 16 * 4


def test_our_own_operators_are_known() -> None:
    from kinema import kernels

    x, weight = torch.ones(2, 6, 16), torch.ones(32, 16)
    call = only(lambda: kernels.linear_gelu(x, weight))
    assert (call.kind, call.flops) == (PRODUCTS, 2 * 12 * 16 * 32)
    heads = torch.ones(1, 2, 6, 16)
    call = only(lambda: kernels.attention(heads, heads, heads))
    assert (call.kind, call.flops) == (ATTENTION, 4 * 2 * 6 * 6 * 16)
    y, gate = torch.zeros(2, 6, 16), torch.ones(1, 1, 16)
    call = only(lambda: kernels.gate_residual(x, y, gate))
    assert call.kind == ELEMENTWISE
    latents, rows = torch.ones(1, 4, 1, 4, 4), torch.ones(32, 16)
    call = only(lambda: kernels.patchify(latents, (1, 2, 2), rows))
    assert (call.kind, call.flops) == (PRODUCTS, 2 * 4 * 16 * 32)
    tokens = torch.ones(1, 1, 2, 2, 32)
    call = only(lambda: kernels.unpatchify(tokens, (1, 2, 2), torch.ones(16, 32)))
    assert (call.kind, call.flops) == (PRODUCTS, 2 * 4 * 16 * 32)


def test_bytes_are_read_and_written_once() -> None:
    assert only(lambda: X + X).bytes == 2 * X.nbytes  # the same tensor twice is read once
    wide = torch.ones(2, 1, 8).expand(2, 5, 8)
    assert only(lambda: X * wide).bytes == 2 * X.nbytes + 2 * 8 * 4
    out = torch.empty_like(X)
    assert only(lambda: torch.mul(X, 3.0, out=out)).bytes == 2 * X.nbytes
    table = torch.ones(1000, 8)
    taken = only(lambda: torch.index_select(table, 0, torch.tensor([1, 2])))
    assert taken.bytes == 2 * 2 * 8 * 4


def test_views_do_nothing() -> None:
    calls = seen(lambda: X.transpose(0, 1).unsqueeze(0).flatten(0, 1).to(torch.float32))
    assert len(calls) == 4 and {call.kind for call in calls} == {None}
    assert only(lambda: X.transpose(0, 1).contiguous()).kind == COPIES


# ---- kernels of a GPU ----------------------------------------------------------------------------


def event(category: str, name: str, ts: float, dur: float, tid: int = 1, **args) -> dict:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "ts": ts,
        "dur": dur,
        "tid": tid,
        "args": args,
    }


def test_kernels_belong_to_the_call_that_launched_them() -> None:
    trace = {
        "traceEvents": [
            event("user_annotation", "kinema:0", 100, 50),
            event("user_annotation", "kinema:1", 200, 50),
            event("cpu_op", "aten::mm", 105, 30),
            event("cuda_runtime", "cudaLaunchKernel", 110, 5, correlation=7),
            event("cuda_runtime", "cudaLaunchKernel", 120, 5, correlation=8),
            event("cuda_driver", "cuLaunchKernelEx", 210, 5, correlation=9),
            event("cuda_runtime", "cudaLaunchKernel", 170, 5, correlation=10),  # between calls
            event("cuda_runtime", "cudaLaunchKernel", 215, 5, tid=2, correlation=11),  # elsewhere
            event("kernel", "gemm", 900, 1000, tid=7, correlation=7),
            event("kernel", "splitk", 1900, 500, tid=7, correlation=8),
            event("gpu_memcpy", "Memcpy DtoD", 2400, 250, tid=7, correlation=9),
            event("kernel", "fmha_fwd", 2700, 125, tid=7, correlation=10),
            event("kernel", "add", 2900, 60, tid=7, correlation=11),
            {"ph": "M", "name": "process_name", "pid": 1, "args": {}},
        ]
    }
    found = kineto.assign(trace)
    assert found.calls == pytest.approx({0: 1.5e-3, 1: 2.5e-4})
    assert [kernel.name for kernel in found.loose] == ["fmha_fwd", "add"]


def test_a_device_is_told_by_kernels_one_after_the_other() -> None:
    """The host has asked for the second call while the first is worked on."""
    watching = Watching(on_device=True)
    product = Call("aten.mm", PRODUCTS, 1000, 10, "float32")
    watching.seen = [Timed(product, 10.0, 0.0), Timed(product, 10.1, 0.0)]
    profile = kineto.Profile({0: 0.5, 1: 0.25}, [kineto.Kernel("fmha", 900.0, 0.125)])
    found = _by_kernels(StepCalls(2.0, 10.0), watching, profile)
    assert [(one.start, one.seconds) for one in found] == [(10, 0.5), (10.5, 0.25), (10.75, 0.125)]
    assert found[-1].call.kind == ATTENTION and found[-1].call.flops == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void flash_fwd_kernel<bf16>", ATTENTION),
        ("cutlass3x_sm90_tensorop_gemm", PRODUCTS),
        ("nvjet_tst_128x256", PRODUCTS),
        ("cudnn_conv3d_implicit_gemm", CONVOLUTIONS),
        ("Memcpy DtoD (Device -> Device)", COPIES),
        ("triton_poi_fused_add_mul", ELEMENTWISE),
    ],
)
def test_kernels_by_name(name: str, kind: str) -> None:
    assert operators.class_of_kernel(name) == kind


# ---- sums and floors -----------------------------------------------------------------------------

CEILINGS = Ceilings("device", {"float32": 1e9}, ((1000, 4e9), (10_000, 5e9), (100_000, 1e9)), 1e-6)


def test_a_floor_is_the_longer_of_computing_and_moving() -> None:
    assert CEILINGS.floor(Call("mm", "x", 2_000_000, 100, "float32")) == 2e-3
    assert CEILINGS.floor(Call("add", "x", 0, 200_000, "float32")) == pytest.approx(2e-4)
    # What fits a cache may go as fast as the fastest that was measured there or above.
    assert CEILINGS.floor(Call("add", "x", 0, 500, "float32")) == pytest.approx(1e-7)


def test_gaps_are_what_operators_leave_of_a_plain_step() -> None:
    calls = [
        Timed(Call("aten.mm", PRODUCTS, 1000, 10, "float32"), 0.0, 0.3),
        Timed(Call("aten.view", None, 0, 0, "float32"), 0.4, 0.1),
        Timed(Call("aten.add", ELEMENTWISE, 0, 10, "float32"), 0.5, 0.1),
    ]
    classes, scale = split(StepCalls(2.0, 0.0, calls), 1.0, CEILINGS)
    assert scale == 1 and classes[GAPS]["seconds"] == pytest.approx(0.6)
    assert classes[PRODUCTS] == {
        "count": 1, "seconds": 0.3, "flops": 1000, "bytes": 10, "floor_seconds": 1e-6,
    }  # fmt: skip
    classes, scale = split(StepCalls(2.0, 0.0, calls), 0.2, CEILINGS)
    assert scale == pytest.approx(0.5) and classes[GAPS]["seconds"] == 0
    assert sum(one["seconds"] for one in classes.values()) == pytest.approx(0.2)


# ---- ceilings ------------------------------------------------------------------------------------


def test_ceilings_are_measured_once_and_again_when_something_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def measure(device: torch.device) -> Ceilings:
        measured.append(device)
        return CEILINGS

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(ceilings_module, "measure", measure)
    assert ceilings_module.ceilings("cpu") == ceilings_module.ceilings("cpu") == CEILINGS
    assert len(measured) == 1
    ceilings_module.ceilings("cpu", remeasure=True)
    assert len(measured) == 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    ceilings_module.ceilings("cpu")
    assert len(measured) == 3
    monkeypatch.setattr(torch, "__version__", "99.0")
    ceilings_module.ceilings("cpu")
    assert len(measured) == 4
    for file in (tmp_path / "kinema").glob("roofline-*.json"):
        file.write_text("{")  # damaged: measured anew
    ceilings_module.ceilings("cpu")
    assert len(measured) == 5


def test_measured_ceilings_are_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "ENOUGH", 0.002)
    monkeypatch.setitem(ceilings_module.COPIES, "cpu", (1 << 16, 1 << 20))
    monkeypatch.setitem(ceilings_module.PRODUCTS, "cpu", ((64, 64, 64), (128, 128, 128)))
    found = ceilings_module.measure(CPU)
    assert set(found.matmul) == {"float32", "bfloat16"} and min(found.matmul.values()) > 0
    assert [size for size, _ in found.copies] == [2 << 16, 2 << 20] and found.copy > 0
    assert 0 < found.launch < 1
