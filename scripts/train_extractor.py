"""Train the classifier that ships in distill/assets/extractor.

    python scripts/train_extractor.py --data FASHION_MNIST_FOLDER --output distill/assets/extractor

The weights of the last epoch are kept, so the test images have no say in them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from distill.data.idx import read_idx
from distill.metrics.classifier import Classifier, ClassifierConfig

CARD = """---
license: apache-2.0
datasets: [fashion_mnist]
---
# Feature extractor of dar-distill

A classifier of Fashion-MNIST (28x28, grey) with {parameters:,} parameters. Its {feature_dim} penultimate
features stand behind the Fréchet distance, KID, precision and recall, its answers behind class agreement, and
its convolution maps behind the LPIPS stand-in. Distances in this feature space are comparable with each other
only: never with a Fréchet Inception distance. The features are scaled to a root mean square of 1 on the
training images.

| | |
|---|---|
| test accuracy | {accuracy:.4f} on the {num_test:,} test images |
| trained on | the {num_train:,} training images; shifts by 1 pixel, no flips |
| data | Fashion-MNIST, Zalando SE, MIT licence |
| input | [B, 1, 28, 28], float in [-1, 1] |
| epochs, batch, seed | {epochs}, {batch_size}, {seed} |
| optimiser | AdamW, one cycle to {learning_rate}, weight decay {weight_decay} |
| training time | {elapsed_s:.0f} s on {threads} CPU thread(s) |
| command | `{command}` |
"""
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 2e-2
BATCH_SIZE = 128


def read_split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    """Images [N, 1, 28, 28] in [-1, 1] and labels [N] of one split ("train" or "t10k")."""
    pixels = torch.from_numpy(read_idx(folder / f"{prefix}-images-idx3-ubyte.gz").copy())
    labels = torch.from_numpy(read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").copy())
    return pixels[:, None].float() / 127.5 - 1, labels.long()


def shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images [B, 1, H, W] moved together by -1, 0 or 1 pixel in each direction; black comes in."""
    dy, dx = torch.randint(0, 3, (2,), generator=generator).tolist()
    return pad(images, (1, 1, 1, 1), value=-1.0)[..., dy : dy + images.shape[-2], dx : dx + images.shape[-1]]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is their label."""
    model.eval()
    answers = torch.cat([model(batch)[1].argmax(1) for batch in images.split(500)])
    return (answers == labels).float().mean().item()


@torch.no_grad()
def feature_size(model: Classifier, images: Tensor) -> float:
    """Root mean square of the features of images [N, 1, 28, 28]."""
    model.eval()
    return torch.cat([model(batch)[0] for batch in images.split(500)]).square().mean().sqrt().item()


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> Classifier:
    """A classifier fitted to images [N, 1, 28, 28] and labels [N]; the last weights, in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Classifier(ClassifierConfig())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = len(images) // BATCH_SIZE
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=epochs * steps)
        for epoch in range(epochs):
            order = torch.randperm(len(images), generator=generator)
            model.train()
            for indices in order[: steps * BATCH_SIZE].split(BATCH_SIZE):
                _, logits = model(shift(images[indices], generator))
                loss = cross_entropy(logits, labels[indices])
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss.item()} in epoch {epoch + 1}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(task, advance=1, description=f"epoch {epoch + 1}, loss {loss.item():.3f}")
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the shipped feature extractor on Fashion-MNIST.")
    parser.add_argument("--data", type=Path, required=True, help="folder with the four idx .gz files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write (replaced whole)")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.epochs < 1:
        parser.error(f"--epochs is {arguments.epochs}; it must be at least 1")

    torch.set_num_threads(arguments.threads)
    train_images, train_labels = read_split(arguments.data, "train")
    test_images, test_labels = read_split(arguments.data, "t10k")
    start = time.perf_counter()
    model = train(train_images, train_labels, arguments.epochs, arguments.seed)
    elapsed_s = time.perf_counter() - start
    # KID's cubic kernel (x . y / D + 1)^3 has a scale of its own: features of size 1 meet it.
    model.scale_features(1 / feature_size(model, train_images))
    measured = accuracy(model, test_images, test_labels)
    card = CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        feature_dim=model.config.feature_dim,
        accuracy=measured,
        num_test=len(test_images),
        num_train=len(train_images),
        epochs=arguments.epochs,
        batch_size=BATCH_SIZE,
        seed=arguments.seed,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        elapsed_s=elapsed_s,
        threads=arguments.threads,
        command="python scripts/train_extractor.py --data FASHION_MNIST_FOLDER"
        f" --output distill/assets/extractor --epochs {arguments.epochs} --seed {arguments.seed}",
    )
    model.save_pretrained(arguments.output, card)
    print(f"test accuracy {measured:.4f} after {elapsed_s:.0f} s; written to {arguments.output}")


if __name__ == "__main__":
    main()
