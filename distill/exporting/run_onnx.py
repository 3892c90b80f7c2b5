"""Draw a row of pictures with sampler.onnx: python run_onnx.py --classes 0,1 --seed 0 --output picture.png"""

import argparse
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def png(pixels: np.ndarray) -> bytes:
    """A file's bytes of uint8 (H, W, 1) or (H, W, 3)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", pixels.shape[1], pixels.shape[0], 8, 2 if pixels.shape[2] == 3 else 0, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--classes", default="0", help="numbers or names, with commas between them")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="picture.png", help="a PNG file; of latents a .npy file")
args = parser.parse_args()
about = json.loads(Path(__file__).with_name("sampler.json").read_text())
numbers = {name: label for label, name in about["classes"].items()}
labels = np.array([numbers.get(word, word) for word in args.classes.split(",")]).astype(np.int64)
shape = (about["num_noises"], len(labels), *about["sample_shape"])
noise = np.random.default_rng(args.seed).standard_normal(shape, dtype=np.float32)
session = onnxruntime.InferenceSession(str(Path(__file__).with_name("sampler.onnx")))
samples = np.asarray(session.run(None, {"noise": noise, "labels": labels})[0])
if shape[2] in (1, 3):
    row = np.concatenate(list(np.clip(127.5 * (samples + 1), 0, 255).round().astype(np.uint8)), axis=-1)
    Path(args.output).write_bytes(png(np.ascontiguousarray(row.transpose(1, 2, 0))))
else:
    np.save(args.output, samples)
