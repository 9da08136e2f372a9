"""What tunes a method never reports it: read off the scripts of tests/benchmarks."""

import ast
from pathlib import Path

import pytest
import torch

import gradprune as gp
from gradprune.datasets import Dataset, ImageSet

BENCHMARKS = Path(__file__).parent / "benchmarks"
TUNING = ("ablation.py", "length_table.py", "strength_table.py", "weights_table.py")  # scripts whose tables choose something


@pytest.fixture
def tuning_models(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import tuning_models
    return tuning_models


def keys(images):
    return {image.numpy().tobytes() for image in images.images}


def names_used(script):
    """All names and attributes that a script reads."""
    tree = ast.parse((BENCHMARKS / script).read_text())
    return ({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            | {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)})


@pytest.mark.slow
def test_tuning_signs_are_not_those_of_the_tables(tuning_models):
    reported = set().union(*(keys(part) for part in gp.load("signs")))
    for part in tuning_models.signs():
        assert not keys(part) & reported


def test_tuning_photographs_are_training_images_alone(tuning_models, monkeypatch):
    """Nothing that a table defends with or measures on is among them, and their three parts share none either."""
    count = 30_500
    numbers = torch.arange(count).reshape(-1, 1, 1, 1)
    images = (numbers // torch.tensor([1, 256, 65536]).reshape(3, 1, 1) % 256).to(torch.uint8)
    pool = ImageSet(images, torch.arange(count) % 10, tuple("abcdefghij"))
    monkeypatch.setattr(tuning_models.gp, "load", lambda name: {"cifar10": Dataset(pool, None, None)}[name])
    parts = [keys(part) for part in tuning_models.photographs("cifar10", 20_000, 5_000)]
    assert [len(part) for part in parts] == [20_000, 5_000, 5_000]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


@pytest.mark.parametrize("script", TUNING)
def test_scripts_that_choose_take_the_tuning_models(script):
    used = names_used(script)
    assert "tuning_victim" in used
    assert not used & {"load_victim", "load", "names", "cards", "draw_signs", "peer"}


def test_tuning_draws_and_seeds_are_others(tuning_models):
    assert not {0, 1, 2} & set(tuning_models.DEFENSE_SEEDS)
    assert not {0, 1, 2} & set(map(int, tuning_models.TRAINING_SEEDS.split(",")))
    assert tuning_models.RENDER_SEED != 0
