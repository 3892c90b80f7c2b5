"""Shipped configurations by name. They live in `configs/`; an installed package has that folder in its assets."""

from __future__ import annotations

from pathlib import Path

from distill.assets import FOLDER
from distill.errors import UserError

NO_RECIPES = ("accelerate", "slurm")  # folders of configs/ that are for other programs


def recipes_folder() -> Path:
    """`configs/` of a clone, or its copy in an installed package."""
    installed = FOLDER / "configs"
    return installed if installed.is_dir() else FOLDER.parents[1] / "configs"


def recipes() -> dict[str, Path]:
    """Files by name, such as `quickstart` and `imagenet256/sit_xl_dmd`."""
    folder = recipes_folder()
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if name.split("/")[0] not in NO_RECIPES}


def config_path(name: str) -> Path:
    """A file of the user's, or the shipped recipe of that name. Raises: UserError where there is neither."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    shipped = recipes()
    if name in shipped:
        return shipped[name]
    raise UserError(f"no configuration file {name}, and no shipped recipe of that name: {', '.join(shipped)}")


def summary(path: Path) -> str:
    """The first line of a recipe's heading."""
    first = path.read_text().split("\n", 1)[0]
    return first.removeprefix("#").strip()
