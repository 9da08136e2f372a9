"""CIFAR-10 and GTSRB from the copies beside the repository, as the files that `gradprune data get` would make.

    python tests/benchmarks/shared_data.py FOLDER       # then: export GRADPRUNE_DATA=FOLDER

The CIFAR-10 copy went through JPEG (quality 90); the GTSRB copy has 100 training and 30 test images a class. Where the
copies are absent, `gradprune data get cifar10` and `gradprune data get gtsrb` bring the published sets.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from gradprune.base.paths import output_folder, write_atomic
from gradprune.datasets.published import PUBLISHED

SHARED = Path(__file__).resolve().parents[3] / "shared/data"


def decoded(packed, part):
    """Some of the CIFAR-10 copy's images, uint8 (N, 32, 32, 3); part: a slice of 0..60000, the last 10,000 are tests."""
    header, data = packed["header"].tobytes(), packed["data"].tobytes()
    offsets = packed["offsets"]
    return np.stack([np.asarray(Image.open(io.BytesIO(header + data[start:end])))
                     for start, end in zip(offsets[:-1][part], offsets[1:][part], strict=True)])


def cifar10():
    packed = np.load(SHARED / "cifar10_all_jpeg90.npz", allow_pickle=False)
    images = decoded(packed, slice(None))
    return {"x_train": images[:50_000], "y_train": packed["y_train"],
            "x_test": images[50_000:], "y_test": packed["y_test"]}


def gtsrb():
    packed = np.load(SHARED / "gtsrb_100_30.npz", allow_pickle=False)
    return {name: packed[name] for name in ("x_train", "y_train", "x_test", "y_test")}


if __name__ == "__main__":
    folder = output_folder(Path(sys.argv[1]))
    for name, read in {"cifar10": cifar10, "gtsrb": gtsrb}.items():
        arrays = {**read(), "classes": np.array(PUBLISHED[name].classes)}
        write_atomic(folder / f"{name}.npz", lambda path, arrays=arrays: np.savez(path, **arrays))
        print(folder / f"{name}.npz")
