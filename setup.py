"""The packages of the wheel; all else is in pyproject.toml. `configs/` is shipped among the assets of `distill`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dar*", "distill*"]), "distill.assets.configs"],
    package_dir={"distill.assets.configs": "configs"},
)
