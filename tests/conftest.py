"""Small data and models that the tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from gradprune.attacks import fit, make_trigger, poison
from gradprune.datasets import Dataset, ImageSet
from gradprune.evaluation import Victim
from gradprune.models import build

# One thread a process: on a busy machine two threads that wait for each other make small models 20 x as slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# No deadline and no judgement on speed: on a busy machine either would fail a test that is right.
settings.register_profile("quick", max_examples=8, deadline=None, derandomize=True, database=None,
                          suppress_health_check=list(HealthCheck))
settings.register_profile("nightly", max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def squares(count: int, seed: int, size: int = 16) -> ImageSet:
    """Four classes that differ in the place of a bright square, on a noisy ground."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    images = torch.randint(0, 110, (count, 3, size, size), generator=generator)
    half = size // 2
    for i, label in enumerate(labels.tolist()):
        row, column = (label // 2) * half + 1, (label % 2) * half + 1
        images[i, :, row:row + half - 3, column:column + half - 3] += 120
    return ImageSet(images.to(torch.uint8), labels.long(), ("north west", "north east", "south west", "south east"))


def lived_in(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give the BatchNorms statistics, scales and shifts such as training leaves."""
    torch.manual_seed(1)
    model.train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        model(images)
    return model.eval()


def write_npz(path: Path, data: Dataset) -> None:
    """A data set as the .npz file that `--data` takes."""
    arrays = {f"{letter}_{part}": tensor.numpy() for part, images in data._asdict().items()
              for letter, tensor in (("x", images.images), ("y", images.labels))}
    np.savez(path, **arrays, classes=np.array(data.train.classes))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """A cache of this run's own: data left by another version of the code must not pass for this one's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("GRADPRUNE_PROGRESS", str(tmp_path_factory.mktemp("progress") / "progress.json"))
        yield


@pytest.fixture(scope="session")
def data() -> Dataset:
    return Dataset(squares(400, 1), squares(120, 2), squares(200, 3))


@pytest.fixture(scope="session")
def victim(data: Dataset) -> Victim:
    """A small ResNet with a working BadNets backdoor, trained in about two seconds; one filter carries most of it."""
    trigger = make_trigger("badnets", size=3, margin=0, color="checker")
    model = build("preact_resnet", 4, width=16, blocks=(1,), seed=0)
    fit(model, poison(data.train, trigger, target=1, rate=0.15).images, epochs=8, batch_size=32, shift=1, progress=False)
    return Victim(model, trigger, 1, data, {})


def pytest_terminal_summary(terminalreporter):
    """Print what tests measured (`record_property("summary", ...)`), also when they ran in parallel."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    lines = [str(value) for report in reports for name, value in report.user_properties if name == "summary"]
    if lines:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(lines))
