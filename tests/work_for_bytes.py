"""One of everything that is written, into the folder named first: test_determinism.py runs this twice."""

import hashlib
import importlib
import importlib.util
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import QUICK, squares, write_npz
from PIL import Image

from gradprune.attacks.triggers import low_frequency
from gradprune.cli.app import app
from gradprune.datasets import Dataset, load
from gradprune.datasets.signs import render_signs
from gradprune.defenses import DEFENSES
from gradprune.pruning import distilled
from gradprune.victims import load_victim

scan = importlib.import_module("gradprune.defenses.scan")  # the package's own name is the function


def command(line):
    app(line.split(), standalone_mode=False)


def digest(tensors):
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def main(out, noise):
    for draw in (random.seed, np.random.seed, torch.manual_seed):  # what ran before must not matter
        draw(noise)
    os.chdir(out)
    os.environ["GRADPRUNE_CACHE"] = "cache"
    write_npz(Path("data.npz"), Dataset(squares(48, 1), squares(24, 2), squares(24, 3)))
    for i, image in enumerate(squares(12, 4).images.permute(0, 2, 3, 1).numpy()):
        Path(f"pictures/class {i % 2}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(f"pictures/class {i % 2}/{i}.png")
    told = {"signs": [digest([part.images, part.labels]) for part in render_signs(3, 2, 1, 1)],
            "pictures": [digest([part.images, part.labels]) for part in load("pictures", size=8)]}
    low_frequency.STEPS, distilled.STEPS, scan.FASTER["steps"] = 3, 3, 4
    for trigger in ("badnets", "low_frequency"):
        command(f"attack {trigger} --data data.npz --width 4 --epochs 12 --rate 0.3 --target 1 --out {trigger}")
    slim = " --slim" if importlib.util.find_spec("torch_pruning") else ""
    command(f"defend badnets.safetensors --spc 2 --out cleaned{slim}")
    command("defend low_frequency.safetensors --spc 1 --recipe verified --out verified")
    victim = load_victim("badnets.safetensors")
    for name, defend in DEFENSES.items():
        result = defend(victim.model, victim.data.defense, victim.trigger, spc=2, progress=False, **QUICK[name])
        told[name] = [digest(result.model.state_dict().values()), result.history]
    command("bench --attacks badnets.safetensors --defenses clp,ft --spc 2 --seeds 1 --out bench")
    command("scan badnets.safetensors --spc 2 --out scan")
    Path("told.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
