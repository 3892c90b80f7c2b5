"""`dar-distill retrofit`: a plain model's folder to a routed one's."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

from dar import SiT, function_error, replace_routing, retrofit
from distill.assets import resolve
from distill.config import RetrofitConfig, config_from_overrides
from distill.errors import UserError
from distill.files import new_folder, write_folder
from distill.sampling.samplers import CLASSES_FILE, SAMPLER_FILE


def retrofit_folder(args: Namespace) -> None:
    """Load, give routing, measure what that changed, save with the files that belong to the model."""
    routing = config_from_overrides(RetrofitConfig, args.overrides).routing
    target = new_folder(args.target, "target")
    source = resolve(args.source, "teacher")
    plain = SiT.from_pretrained(source)
    try:
        routed = (replace_routing if args.lossy else retrofit)(plain, routing)
    except ValueError as error:
        raise UserError(f"{args.source}: {error}") from error
    worst, typical = function_error(plain, routed)

    def fill(folder: Path) -> None:
        routed.save_pretrained(folder)
        for name in (CLASSES_FILE, SAMPLER_FILE):
            if (source / name).is_file():
                shutil.copy(source / name, folder / name)

    write_folder(target, fill)
    added = sum(p.numel() for p in routed.routing.parameters())
    print(f"{target}: routing {routing.kind}, {added:,} parameters more")
    print(f"change of the velocity, over its RMS: at most {worst:.1e}, RMS {typical:.1e}")
