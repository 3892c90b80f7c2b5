"""The packages of the wheel; all else is in pyproject.toml. `configs/` is shipped among the assets of `distill`."""

from setuptools import find_namespace_packages, setup

CONFIGS = "distill.assets.configs"

setup(
    packages=[  # folders of data too, or setuptools would call them packages that are left out
        *find_namespace_packages(include=["dar*", "distill*"], exclude=["*.__pycache__"]),
        CONFIGS,
        *(f"{CONFIGS}.{name}" for name in find_namespace_packages("configs")),
    ],
    package_dir={CONFIGS: "configs"},
)
