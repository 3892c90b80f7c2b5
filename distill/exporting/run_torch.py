"""Draw samples with sampler.pt2: python run_torch.py --classes 0,1 --seed 0 --output samples.pt"""

import argparse
import json
from pathlib import Path

import torch

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--classes", default="0", help="numbers or names, with commas between them")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="samples.pt", help="a file of torch.save, float32 (B, C, H, W)")
args = parser.parse_args()
about = json.loads(Path(__file__).with_name("sampler.json").read_text())
numbers = {name: label for label, name in about["classes"].items()}
labels = torch.tensor([int(numbers.get(word, word)) for word in args.classes.split(",")])
generator = torch.Generator().manual_seed(args.seed)
noise = torch.randn(about["num_noises"], len(labels), *about["sample_shape"], generator=generator)
sampler = torch.export.load(Path(__file__).with_name("sampler.pt2")).module()
torch.save(sampler(noise, labels), args.output)
