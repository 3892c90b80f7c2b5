"""Statistics of a data set, for `evaluate.reference`.

    python scripts/data_statistics.py --name idx --path /usr/share/datasets/fashion-mnist \
        --source "Fashion-MNIST train" --output distill/assets/data.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from distill.data import load_dataset
from distill.data.base import noise_of
from distill.metrics import load_extractor, load_perceptual, reference_from_images
from distill.seeds import generator_for


def class_balanced(labels: torch.Tensor, num_images: int, seed: int) -> torch.Tensor:
    """Indices of num_images // K images of every class, at random."""
    order = torch.randperm(len(labels), generator=generator_for(seed, "statistics"))
    classes = labels.unique().tolist()
    return torch.cat([order[labels[order] == label][: num_images // len(classes)] for label in classes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="idx", help="data set (idx)")
    parser.add_argument("--path", required=True, help="its folder")
    parser.add_argument("--split", default="train", choices=("train", "test"))
    parser.add_argument("--num-images", type=int, default=10000, help="a whole number per class is taken (10000)")
    parser.add_argument("--extractor", default="embedded")
    parser.add_argument("--source", required=True, help="a name for people")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    data = load_dataset(args.name, args.path, args.split)
    chosen = class_balanced(data.labels, args.num_images, seed=0)
    images, y = data.batch(chosen, noise_of(generator_for(0, "statistics", args.split)))
    extractor = load_extractor(args.extractor)
    perceptual = load_perceptual(tuple(images.shape[1:]), extractor)
    if perceptual is None:
        print(f"no diversity: nothing on this machine measures LPIPS of images {list(images.shape[1:])}")
    statistics = reference_from_images(
        images, data.condition.groups(y), extractor, f"{args.source}, {len(images)} images", perceptual=perceptual
    )
    statistics.save(args.output)
    print(f"{args.output}: {len(images)} images, {args.output.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
