"""Every kernel on this GPU: right, how fast, against what the GPU can do and what others do.

    python -m kinema.benchmarks.kernels.run_all

Checks each kernel against its definition, times it at the models' shapes beside its peers and the
ceilings measured in the same run, and writes rows to benchmarks/results/. It stops at `--minutes`
and lists what it left out.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from ...kernels import dispatch
from ..measure import provenance, write_rows
from .cases import OPS, Case, cases
from .models import AWKWARD, BY_NAME, MODELS, Model
from .timing import PREDICTED_GBPS, PREDICTED_TFLOPS, Time, ceilings, measure

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
COMPILED = ("Wan2.1-1.3B 480p", "Wan2.1-14B 720p")  # torch.compile takes seconds a shape
TUNED = "Wan2.1-14B 480p"
PACKAGES = ("triton", "flash-attn", "fa3-fwd", "flash-attn-4", "nvidia-cudnn-cu13")
Row = dict[str, Any]


class Clock:
    """What is left of the time a run may take."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []

    def allows(self, what: str, seconds: float = 5.0) -> bool:
        """Whether `seconds` are left; if not, `what` is noted as left out."""
        if time.monotonic() + seconds < self.end:
            return True
        self.left_out.append(what)
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if every kernel that ran was right."""
    options = _options(argv)
    if not torch.cuda.is_available():
        print("benchmarks/kernels/run_all.py needs an NVIDIA GPU; none is present", file=sys.stderr)
        return 1
    clock, rows = Clock(options.minutes), []
    limits = ceilings()
    print(f"{torch.cuda.get_device_name()}: {limits}")
    for op in options.ops:
        rows += awkward(op, clock)
    for model in MODELS:
        for op in options.ops:
            rows += at_shapes(op, model, limits, clock)
    rows += tuning(options.ops, limits, clock)
    found = targets(rows)
    report = {
        **provenance(*PACKAGES),
        "gpu": _gpu(),
        "ceilings": limits,
        "predicted_from": {"tflops": PREDICTED_TFLOPS, "gbps": PREDICTED_GBPS},
        "targets": found,
        "left_out": clock.left_out,
        "rows": rows,
    }
    print("\n".join(f"{name}: {value}" for name, value in found.items()))
    if clock.left_out:
        print(f"left out for time: {', '.join(clock.left_out)}")
    print(f"written to {write_rows(options.name or _slug(), report)}")
    own = [row for row in rows if row["kind"] in ("ours", "check")]
    wrong = [row for row in own if row.get("correct") is False or "error" in row]
    for row in wrong:
        print(f"WRONG {_title(row)}: {row.get('error') or row['max_error']}")
    return 1 if wrong else 0


# ---- what is run ---------------------------------------------------------------------------------


def awkward(op: str, clock: Clock) -> Iterator[Row]:
    """Sizes that divide nothing, in every dtype: checked, not timed."""
    for dtype in DTYPES:
        if not clock.allows(f"{op} awkward {dtype}"):
            return
        for case in cases(op, AWKWARD, "cuda", dtype):
            for backend, call in case.ours("cuda").items():
                yield _row(case, dtype, backend, "check") | _attempt(partial(_checked, case, call))


def at_shapes(op: str, model: Model, limits: dict[str, float], clock: Clock) -> Iterator[Row]:
    """A model's shapes in bf16: every backend here checked and timed, then its peers timed."""
    if not clock.allows(f"{op} {model.name}"):
        return
    dtype = torch.bfloat16
    for case in cases(op, model, "cuda", dtype):
        chosen = _automatic(case)
        for backend, call in case.ours("cuda").items():
            row = _row(case, dtype, backend, "ours", automatic=backend == chosen)
            row |= _attempt(partial(_checked, case, call))
            if "error" not in row:
                row |= _attempt(partial(_timed, case, call, limits))
            yield _say(row)
        for peer, call in case.others(model.name in COMPILED).items():
            if clock.allows(f"{peer} {_title(_row(case, dtype, peer, 'peer'))}"):
                row = _row(case, dtype, peer, "peer")
                yield _say(row | _attempt(partial(_timed, case, call, limits)))
        _release()


def tuning(ops: Sequence[str], limits: dict[str, float], clock: Clock) -> Iterator[Row]:
    """Every configuration of the products and of attention at one shape."""
    model = BY_NAME[TUNED]
    for op in CONFIGURATIONS:
        if op not in ops or not clock.allows(f"tuning {op}", 20):
            continue
        for case in cases(op, model, "cuda", torch.bfloat16):
            for config, call in CONFIGURATIONS[op](case):
                if clock.allows(f"tuning {op} {config}"):
                    row = _row(case, torch.bfloat16, f"triton {config}", "configuration")
                    yield _say(row | _attempt(partial(_timed, case, call, limits)))
            _release()


Configurations = Iterator[tuple[str, Callable[[], Any]]]


def _of_attention(case: Case) -> Configurations:
    from ...kernels.attention import capability, configs, run

    query, key, value, *bias = case.args
    scale = query.shape[-1] ** -0.5
    for config in configs(capability(query.device), query.shape[-1], query.dtype):
        bias_of_keys = bias[0] if bias else None
        yield str(config), partial(run, query, key, value, bias_of_keys, scale, config)


def _of_block_sparse(case: Case) -> Configurations:
    from ...kernels.attention import capability
    from ...kernels.block_sparse_attention import configs, run

    query = case.args[0]
    scale = query.shape[-1] ** -0.5
    for config in configs(capability(query.device), query.shape[-1], query.dtype):
        yield str(config), partial(run, *case.args, scale, config)


def _of_quantized_attention(case: Case) -> Configurations:
    from ...kernels.attention import capability
    from ...kernels.quantized_attention import configs, run

    query, to = case.args[0], case.options["to"]
    scale = query.shape[-1] ** -0.5
    for config in configs(capability(query.device), query.shape[-1], to):
        yield str(config), partial(run, *case.args, None, scale, to, config)


def _of_linear_gelu(case: Case) -> Configurations:
    from ...kernels._product import configs, product
    from ...kernels.attention import capability

    x = case.args[0]
    for config in configs(capability(x.device), x.itemsize):
        yield str(config), partial(product, *case.args, x.dtype, gelu=True, config=config)


def _of_quantized_linear(case: Case) -> Configurations:
    from ...kernels._product import configs, product
    from ...kernels.attention import capability

    x, weight, bias = case.args
    scales, dtype = (x.scale, weight.scale), case.options["dtype"]
    for config in configs(capability(x.values.device), 1):
        factors = (x.values, weight.values, bias, dtype)
        yield str(config), partial(product, *factors, gelu=False, config=config, scales=scales)


CONFIGURATIONS: dict[str, Callable[[Case], Configurations]] = {
    "attention": _of_attention,
    "quantized_attention": _of_quantized_attention,
    "block_sparse_attention": _of_block_sparse,
    "linear_gelu": _of_linear_gelu,
    "quantized_linear": _of_quantized_linear,
}


# ---- rows ----------------------------------------------------------------------------------------


def _row(case: Case, dtype: torch.dtype, backend: str, kind: str, **more: Any) -> Row:
    names = {"op": case.op, "model": case.model, "variant": case.variant}
    return {**names, "dtype": str(dtype)[6:], "backend": backend, "kind": kind, **more}


def _attempt(work: Callable[[], Row]) -> Row:
    """What `work` finds, or why it could not."""
    try:
        return work()
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {"error": f"{type(error).__name__}: {first}"[:300]}


def _checked(case: Case, call: Callable[[], Any]) -> Row:
    if case.part_of_args is None:
        return {}
    error, allowed, right = case.errors(call())
    return {"correct": right, "max_error": error, "allowed_error": allowed}


def _timed(case: Case, call: Callable[[], Any], limits: dict[str, float]) -> Row:
    """Times, the rate, its share of the ceiling measured now, and the time predicted beforehand."""
    taken: Time = measure(call)
    tflops, gbps = case.flops / taken.median_ms / 1e9, case.bytes / taken.median_ms / 1e6
    predicted = max(case.flops / PREDICTED_TFLOPS / 1e9, case.bytes / PREDICTED_GBPS / 1e6)
    of_product, of_copy = tflops / limits["bf16_tflops"], gbps / limits["copy_gbps"]
    row = {key: round(value, 5) for key, value in taken._asdict().items()}
    row |= {"predicted_ms": round(predicted, 5), "gbps": round(gbps, 1)}
    row |= {"tflops": round(tflops, 1)} if case.flops else {}
    return row | {"share_of_ceiling": round(max(of_product, of_copy), 4)}


def _automatic(case: Case) -> str | None:
    """The backend that would be chosen; none for what is asked for by name only."""
    try:
        return dispatch.choose(case.op, "cuda", **case.needs).backend
    except RuntimeError:
        return None


def _say(row: Row) -> Row:
    found = row.get("error") or (
        f"{row['median_ms']:.3f} ms, {row['share_of_ceiling']:.0%} of the ceiling"
        f" ({row['predicted_ms']:.3f} ms predicted)"
    )
    print(f"{_title(row)}: {found}{' WRONG' * (row.get('correct') is False)}", flush=True)
    return row


def _title(row: Row) -> str:
    return " ".join(filter(None, (row["op"], row["variant"], row["model"], row["backend"])))


def _release() -> None:
    gc.collect()
    torch.cuda.empty_cache()


# ---- targets -------------------------------------------------------------------------------------

MEMORY_BOUND = ("norm_modulate", "qk_norm_rope", "gate_residual", "norm_silu")
# Elementwise work of a whole Wan block, and how often each runs in it: two of its norms take the
# residual before them along, cross attention's query is half of a qk_norm_rope.
WAN_BLOCK = {
    ("norm_modulate", "modulate"): 1.0,
    ("qk_norm_rope", ""): 1.5,
    ("norm_modulate", "residual"): 2.0,
    ("gate_residual", ""): 1.0,
}
FUSED_FLOOR_UNITS = 20  # reads and writes of (tokens, d) in bf16 that a fused Wan block needs


def targets(rows: Sequence[Row]) -> dict[str, Any]:
    """The issue's targets: what was found, each None where nothing was measured for it."""
    ours = [row for row in rows if row["kind"] == "ours" and "median_ms" in row]
    copies = [row for row in ours if row["op"] in MEMORY_BOUND and row["backend"] == "triton"]
    return {
        "memory-bound share of copy, worst (0.85)": _worst(
            row["share_of_ceiling"] for row in copies
        ),
        "dispatched attention over fastest, worst (1.0)": _worst(_dispatch_ratios(ours)),
        "dense Triton attention over fastest, 32k tokens, worst (0.75)": _worst(
            _triton_ratios(ours)
        ),
        "8-bit attention over fastest bf16, best (1.4)": _best(_eight_bit_ratios(ours)),
        "fp8 linear over bf16, 14B, worst (1.5)": _worst(_fp8_ratios(rows)),
        "elementwise time of a Wan block over its fused floor (1.3)": _block_ratios(ours),
    }


def _dense(ours: Sequence[Row]) -> dict[str, list[Row]]:
    """Exact backends of full attention, by model."""
    found: dict[str, list[Row]] = {}
    for row in ours:
        lossy = row["backend"] in ("triton-int8", "triton-fp8")
        if row["op"] == "attention" and row["variant"] != "cross" and not lossy:
            found.setdefault(row["model"], []).append(row)
    return found


def _dispatch_ratios(ours: Sequence[Row]) -> Iterator[float]:
    for rows in _dense(ours).values():
        fastest = min(row["median_ms"] for row in rows)
        yield from (fastest / row["median_ms"] for row in rows if row["automatic"])


def _triton_ratios(ours: Sequence[Row]) -> Iterator[float]:
    """Of the models with head dim 128 and 32k tokens."""
    for model, rows in _dense(ours).items():
        if model.startswith("Wan") and model.endswith("480p"):
            fastest = min(row["median_ms"] for row in rows)
            own = (row["median_ms"] for row in rows if row["backend"] == "triton")
            yield from (fastest / time for time in own)


def _eight_bit_ratios(ours: Sequence[Row]) -> Iterator[float]:
    for model, rows in _dense(ours).items():
        fastest = min(row["median_ms"] for row in rows)
        lossy = (r for r in ours if r["op"] == "quantized_attention" and r["model"] == model)
        yield from (fastest / row["median_ms"] for row in lossy)


def _fp8_ratios(rows: Sequence[Row]) -> Iterator[float]:
    large = [r for r in rows if "14B" in r["model"] and r["op"] == "quantized_linear"]
    large = [row for row in large if row["variant"] == "fp8" and "median_ms" in row]
    for model in sorted({row["model"] for row in large}):
        own = [r["median_ms"] for r in large if r["model"] == model and r["kind"] == "ours"]
        bf16 = [r["median_ms"] for r in large if r["model"] == model and r["backend"] == "bf16"]
        if own and bf16:
            yield bf16[0] / min(own)


def _block_ratios(ours: Sequence[Row]) -> dict[str, float]:
    found = {}
    for model in (model for model in MODELS if model.name.startswith("Wan")):
        taken = {
            (row["op"], row["variant"]): row["median_ms"]
            for row in ours
            if row["model"] == model.name and row["backend"] == "triton"
        }
        if all(part in taken for part in WAN_BLOCK):
            spent = sum(taken[part] * count for part, count in WAN_BLOCK.items())
            floor = FUSED_FLOOR_UNITS * 2 * model.tokens * model.dim / PREDICTED_GBPS / 1e6
            found[model.name] = round(spent / floor, 3)
    return found


def _worst(values: Iterable[float]) -> float | None:
    return round(min(values, default=0.0), 3) or None


def _best(values: Iterable[float]) -> float | None:
    return round(max(values, default=0.0), 3) or None


def _gpu() -> dict[str, Any]:
    device = torch.cuda.get_device_properties(0)
    return {
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
    }


def _slug() -> str:
    name = torch.cuda.get_device_name().lower().removeprefix("nvidia ")
    return "kernels_" + "".join(c if c.isalnum() else "_" for c in name)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after these")
    parser.add_argument("--ops", nargs="+", default=list(OPS), choices=list(OPS))
    parser.add_argument("--name", help="of the file in benchmarks/results/, without .json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
