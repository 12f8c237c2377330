"""`kinema verify`, `kinema keys`, and the flags of `kinema generate`."""

import json
from pathlib import Path

from kinema import verify
from kinema.runtime.cli import run
from kinema.runtime.provenance import keys

from .conftest import remuxed, studio


def test_exit_codes_say_what_was_found(signed, tmp_path, capsys):
    data = bytearray(signed.read_bytes())
    data[-20] ^= 1
    (tmp_path / "changed.mp4").write_bytes(data)
    (tmp_path / "a.txt").write_text("a red ball")
    stripped = remuxed(signed, tmp_path / "b.mp4")
    for file, code, state in [
        (signed, 0, "valid"),
        (tmp_path / "changed.mp4", 1, "invalid"),
        (tmp_path / "a.txt", 3, "nothing"),
        (stripped, 4, "marked"),
    ]:
        assert run(["verify", str(file), "--json"]) == code
        told = json.loads(capsys.readouterr().out)
        assert (told["state"], told["exit_code"]) == (state, code)
        assert run(["verify", str(file)]) == code
        assert capsys.readouterr().out.startswith(f"{file}: ")
    root = str(keys.keys_folder() / keys.ROOT)
    assert run(["verify", str(signed), "--trust", root, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "trusted"
    assert run(["verify", str(tmp_path / "none.mp4")]) == 2
    assert run(["verify", str(signed), "--mark-key", str(tmp_path / "none")]) == 2
    assert run(["info", str(signed), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["provenance"]["state"] == "valid"


def test_keys_are_made_and_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert run(["keys", "init", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["development"] and Path(made["authority"]).is_file()
    assert run(["keys", "init"]) == 2
    assert "--force makes a new one" in capsys.readouterr().err
    before = Path(made["authority"]).read_bytes()
    assert run(["keys", "init", "--force"]) == 0
    assert Path(made["authority"]).read_bytes() != before
    own = studio(tmp_path / "own")
    files = ["--sign-key", str(own / "key.pem"), "--sign-chain", str(own / "chain.pem")]
    capsys.readouterr()
    assert run(["keys", "show", *files, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "Studio"


def test_flags_of_generate(tmp_path, capsys):
    small = ["a red ball bounces", "--num-frames", "9", "--steps", "1", "-o"]
    path = str(tmp_path / "a.mp4")
    assert run(["generate", *small, path, "--no-manifest", "--no-invisible-mark"]) == 0
    assert verify(path).state == "nothing"
    assert run(["generate", *small, path, "--force", "--no-manifest", "--visible-mark"]) == 0
    assert verify(path).state == "marked"
    assert run(["generate", *small, path, "--force", "--tell-prompt"]) == 0
    assert verify(path).generation["prompt"] == "a red ball bounces"
    capsys.readouterr()
    assert run(["generate", *small, path, "--force", "--sign-key", path]) == 2
    assert "belong together" in capsys.readouterr().err
