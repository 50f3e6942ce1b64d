"""Prints a hash of the weights in every last.ckpt under the given folders: equal hashes, equal bits."""

import hashlib
import sys
from pathlib import Path

import torch

for folder in map(Path, sys.argv[1:]):
    for path in sorted(folder.rglob("last.ckpt")):
        digest = hashlib.sha256()
        for name, value in sorted(torch.load(path, map_location="cpu", weights_only=True)["state_dict"].items()):
            digest.update(name.encode())
            digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
        print(path.parents[1].relative_to(folder), digest.hexdigest()[:16])
