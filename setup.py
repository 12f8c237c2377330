"""Top folders install under one name: runtime/ is kinema.runtime, world/ is kinema.world, ..."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
TOP_FOLDERS = ("runtime", "kernels", "export", "world", "benchmarks")


def packages_under(folder: str) -> list[str]:
    """Names below `kinema.` of a top folder and its subpackages; none if it is no package."""
    if not (ROOT / folder / "__init__.py").is_file():
        return []
    return [folder, *(f"{folder}.{name}" for name in find_packages(str(ROOT / folder)))]


folders = [folder for folder in TOP_FOLDERS if packages_under(folder)]

setup(
    packages=[
        "kinema",
        *(f"kinema.{name}" for folder in folders for name in packages_under(folder)),
    ],
    package_dir={"kinema": "kinema", **{f"kinema.{folder}": folder for folder in folders}},
    include_package_data=False,
    package_data={
        "kinema": ["py.typed"],
        "kinema.runtime": ["assets/**"],
        "kinema.benchmarks": ["results/**"],
    },
)
