"""Fails unless a wheel holds every module and asset that the repository tracks."""

import subprocess
import sys
import zipfile

FOLDERS = ("runtime", "kernels", "export", "world", "benchmarks")


def expected() -> set[str]:
    tracked = subprocess.check_output(["git", "ls-files"], text=True).splitlines()
    shipped = [f for f in tracked if f.endswith(".py") or f.startswith("runtime/assets/")]
    inside = {f"kinema/{f}" for f in shipped if f.split("/")[0] in FOLDERS}
    return inside | {f for f in shipped if f.startswith("kinema/")} | {"kinema/py.typed"}


missing = sorted(expected() - set(zipfile.ZipFile(sys.argv[1]).namelist()))
if missing:
    sys.exit(f"not in the wheel: {', '.join(missing)}")
