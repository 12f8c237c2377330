"""The script for a GPU walks through all of its rows on a CPU; floors are the counted ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("diffusers")

from kinema.benchmarks import chip, floors, gpu, gpu_step, measure, rows, step, tables
from kinema.runtime.profiling import ceilings

RATES = ceilings.Ceilings("a chip", {"bfloat16": 1e12}, ((1 << 20, 1e10),), 1e-5)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """What a dry run wrote, its check in this process."""
    file = tmp_path_factory.mktemp("dry") / "rows.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "FEWEST", 1)
        patch.setattr(gpu_step, "TURNS_SECONDS", 0.01)
        patch.setattr(chip, "_process", lambda command: gpu.main(command[3:]))
        patch.setattr(ceilings, "ceilings", lambda device, remeasure: RATES)
        assert gpu.main(["--dry-run", "--no-compile", "--out", str(file)]) == 0
    return rows.read(file)


def test_a_dry_run_has_every_row(dry):
    benches = {row.bench for row in dry}
    assert benches == {"ceilings", "check", "step", "attention", "waterfall"}
    runners = {(row.bench, row.runner) for row in dry}
    assert {("step", "diffusers eager"), ("step", "kinema eager")} <= runners
    skipped = {row.runner: row.note for row in rows.select(dry, quantity="skipped")}
    assert "need a GPU" in skipped["kinema graph"]
    assert "not on cpu" in skipped["kinema eager, attention flash3"]
    quantities = {row.quantity for row in rows.select(dry, runner="kinema eager")}
    assert quantities == {"seconds", "ratio", "error_over_rms", "share_of_floor"}
    assert len({row.name for row in rows.select(dry, bench="check")}) == len(chip.CHECKED)
    assert all(row.median <= 1 for row in rows.select(dry, quantity=chip.QUANTITY))


def test_its_steps_agree_with_the_reference(dry):
    # A hundred roundings of bf16, one after another, walk ten of them away, in each of the two.
    errors = rows.select(dry, quantity="error_over_rms")
    assert errors and all(row.median < 20 * 2**-8 for row in errors)


def test_rows_of_a_gpu_make_a_table(dry):
    on_gpu = [replace(row, driver="580", threads=None) for row in dry]
    table = tables.table("gpu", on_gpu)
    assert "| kinema graph | left out: " in table and "of the floor" in table
    assert tables.table("gpu", dry) == tables.NONE_YET


def test_without_a_gpu_it_says_so(capsys):
    if gpu.torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main([]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().out


def test_a_wrong_kernel_is_left_out(tmp_path, monkeypatch):
    file, asked = tmp_path / "rows.csv", []
    about = rows.Row(device=rows.about("").device, bench="check", name="attention")
    wrong = rows.one(about, "triton", chip.QUANTITY, "1", 3.0, note="wrong")
    rows.merge([wrong, rows.one(about, "flash3", chip.QUANTITY, "1", 0.5)], file)
    monkeypatch.setattr(chip, "_process", asked.append)
    assert chip.check_apart(file, gpu.torch.device("cpu")) == {"attention triton"}
    ((_, module, name, check, *_),) = asked
    assert (module, name, check) == ("-m", gpu.__name__, "--check")


def test_the_floor_is_the_one_that_was_counted():
    """Of Wan2.1-1.3B at 832x480, 81 frames: 283 TFLOP, 71 % of it attention; at 790 TFLOP/s and
    4.3 TB/s 372 ms, of which 14 ms is elementwise."""
    config = step.SIZES["1.3b"].config
    assert floors.flops(config, 32760) == pytest.approx(283.0e12, rel=1e-3)
    assert floors.floor_seconds(config, 32760, 790, 4300) == pytest.approx(0.372, abs=5e-4)
    block = list(floors.operations(config, 32760))
    attention = sum(work.flops for work in block if "attention" in work.name and work.bytes > 2e8)
    assert attention / sum(work.flops for work in block) == pytest.approx(0.71, abs=0.02)
    elementwise = sum(work.seconds(790, 4300) for work in block if not work.flops)
    assert 30 * elementwise == pytest.approx(0.014, abs=5e-4)
