"""The rows of one item of work: a stage of one operation at one model's shapes, on this GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from ...kernels import dispatch
from .case import Case
from .cases import cases
from .configurations import CONFIGURATIONS
from .models import AWKWARD, BY_NAME
from .timing import PREDICTED_GBPS, PREDICTED_TFLOPS, Time, ceilings, measure

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Row = dict[str, Any]
Limits = dict[str, float]


class Item(NamedTuple):
    """What is done, to which operation, at the shapes of which model."""

    stage: str
    op: str = ""
    model: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, self))


def rows_of(item: Item, limits: Limits) -> Iterator[Row]:
    """Those of an item; `limits` are the ceilings found before, none needed to check."""
    yield from STAGES[item.stage](item, limits)


def ceilings_row(item: Item, limits: Limits) -> Iterator[Row]:
    """What this GPU reaches now."""
    yield {"kind": "ceilings", **ceilings()}


def check(item: Item, limits: Limits) -> Iterator[Row]:
    """Every backend here against the definition: in every dtype where shapes are awkward."""
    for dtype in DTYPES if item.model == AWKWARD.name else DTYPES[:1]:
        for case in _cases(item, dtype):
            for backend, call in case.ours("cuda").items():
                yield _row(case, dtype, backend, "check") | _attempt(partial(_checked, case, call))


def time(item: Item, limits: Limits) -> Iterator[Row]:
    """Every backend here, then eager PyTorch and what else is the peer of an operation."""
    for case in _cases(item):
        chosen = _automatic(case)
        for backend, call in case.ours("cuda").items():
            row = _row(case, DTYPES[0], backend, "ours", automatic=backend == chosen)
            yield row | _attempt(partial(_timed, case, call, limits))
        for peer, call in case.others(compiled=False).items():
            row = _row(case, DTYPES[0], peer, "peer")
            yield row | _attempt(partial(_timed, case, call, limits))


def compiled(item: Item, limits: Limits) -> Iterator[Row]:
    """torch.compile of the eager peer, which takes seconds a shape."""
    for case in _cases(item):
        if call := case.others(compiled=True).get("compile"):
            row = _row(case, DTYPES[0], "compile", "peer")
            yield row | _attempt(partial(_timed, case, call, limits))


def tune(item: Item, limits: Limits) -> Iterator[Row]:
    """Every configuration of our kernel."""
    for case in _cases(item):
        for config, call in CONFIGURATIONS[item.op](case):
            row = _row(case, DTYPES[0], f"triton {config}", "configuration")
            yield row | _attempt(partial(_timed, case, call, limits))


STAGES: dict[str, Callable[[Item, Limits], Iterator[Row]]] = {
    "ceilings": ceilings_row,
    "check": check,
    "time": time,
    "tune": tune,
    "compile": compiled,
}


def title(row: Row) -> str:
    """Which row this is, for a line of text."""
    names = ("op", "variant", "model", "backend", "kind", "dtype")
    return " ".join(filter(None, (row.get(name) for name in names)))


def said(row: Row) -> str:
    """A row as a line of text."""
    if "error" in row:
        found = f"FAILED {row['error']}"
    elif "median_ms" in row:
        found = (
            f"{row['median_ms']:.3f} ms, {row['share_of_ceiling']:.0%} of the ceiling"
            f" ({row['predicted_ms']:.3f} ms predicted)"
        )
    elif "correct" in row:
        verdict = "right" if row["correct"] else "WRONG"
        found = f"{verdict}, error {row['max_error']:.3g} of {row['allowed_error']:.3g} allowed"
    else:
        found = str({name: value for name, value in row.items() if name != "kind"})
    return f"{title(row)}: {found}"


def _cases(item: Item, dtype: torch.dtype = DTYPES[0]) -> Iterator[Case]:
    """Those of an item; what the last one left is freed before the next."""
    for case in cases(item.op, BY_NAME[item.model], "cuda", dtype):
        yield case
        gc.collect()
        torch.cuda.empty_cache()


def _row(case: Case, dtype: torch.dtype, backend: str, kind: str, **more: Any) -> Row:
    names = {"op": case.op, "model": case.model, "variant": case.variant}
    return {**names, "dtype": str(dtype)[6:], "backend": backend, "kind": kind, **more}


def _attempt(work: Callable[[], Row]) -> Row:
    """What `work` finds, or why it could not."""
    try:
        return work()
    except Exception as error:
        return {"error": reason(error)}


def reason(error: BaseException) -> str:
    """An error as one line."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first}"[:300]


def _checked(case: Case, call: Callable[[], Any]) -> Row:
    if case.part_of_args is None:
        call()
        torch.cuda.synchronize()
        return {"unchecked": "too large for the definition"}
    error, allowed, right = case.errors(call())
    return {"correct": right, "max_error": error, "allowed_error": allowed}


def _timed(case: Case, call: Callable[[], Any], limits: Limits) -> Row:
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
