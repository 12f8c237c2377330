"""The benchmark of loading, on next to no bytes."""

from __future__ import annotations

import pytest

from kinema.benchmarks import load, measure, rows
from kinema.runtime.checkpoints.shards import read_entries, weight_files

TINY = {"num_attention_heads": 1, "attention_head_dim": 24, "ffn_dim": 32, "text_dim": 16}


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "WIDTHS", TINY)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)


@pytest.mark.parametrize("options", [[], ["--shards", "3"], ["--stored", "float32"]], ids=str)
def test_it_prints_ratios(capsys, options):
    load.main(["--gigabytes", "0.0003", "--repeats", "1", *options])
    out = capsys.readouterr().out
    assert f"in {3 if '--shards' in options else 1} file(s), warm: read " in out
    assert "read into memory " in out and "of the speed of reading" in out


def test_it_keeps_rows():
    load.main(["--gigabytes", "0.0003", "--repeats", "1", "--write"])
    found = rows.read()
    assert {row.runner for row in found} == {"read", "read into memory", "load"}
    assert {row.base for row in rows.select(found, quantity="ratio")} == {"read"}
    assert "safetensors" in found[0].versions and found[0].sizes["page_cache"] == "warm"


@pytest.mark.parametrize("gigabytes", [0.0003, 0.001])
def test_the_size_is_about_what_was_asked_for(tmp_path, gigabytes):
    config = load.config_of(gigabytes, load.torch.bfloat16)
    files = load.write_checkpoint(tmp_path, config, load.torch.bfloat16, 2)
    assert weight_files(tmp_path) == files
    entries = read_entries(tmp_path).values()
    assert sum(e.end - e.start for e in entries) == pytest.approx(gigabytes * 1e9, rel=0.05)
