"""What notebooks 00 and 01 lean on: the short training, the measured tables, the own picture, the checklist."""

import re

import pandas as pd
import torch
from conftest import refuses
from PIL import Image

from gradprune.attacks import make_trigger
from gradprune.attacks.training import TrainingResult
from gradprune.cli.doctor import Check
from gradprune.lessons.runtime import attacking, start
from gradprune.models import build


def test_an_own_trigger_is_held_in_range():
    assert attacking.OwnTrigger(lambda images: images + 0.7)(torch.rand(2, 3, 8, 8)).max() == 1


def test_answers_are_counted_by_class(data):
    model = build("preact_resnet", 4, width=4, blocks=(1,))
    counts = attacking.answer_counts(model, data.test, make_trigger("badnets"))
    assert counts.shape == (4, 4) and counts.sum(1).tolist() == torch.bincount(data.test.labels).tolist()
    assert torch.allclose(attacking.answer_shares(counts).sum(1), torch.ones(4))
    rows = pd.DataFrame([(t, a, int(counts[t, a])) for t in range(4) for a in range(4)], columns=["true", "answer", "images"])
    assert torch.allclose(attacking.answer_shares(rows).float(), attacking.answer_shares(counts).float())


def test_the_tables_are_there_and_agree_with_themselves():
    rates = attacking.table("poison_rate")
    assert sorted(rates["rate"].unique()) == list(attacking.RATES) and set(rates["seed"]) == set(attacking.SEEDS)
    assert len(rates) == len(attacking.RATES) * len(attacking.SEEDS)
    assert (rates.groupby("rate")["asr"].mean() > 0.9).any(), "the question of notebook 01 has an answer"
    assert rates[["acc", "asr", "ra"]].to_numpy().min() >= 0 and (rates["asr"] + rates["ra"] <= 1 + 1e-6).all()
    for _, rows in attacking.table("label_maps").groupby("label_map"):
        assert len(rows) == 144 and rows["images"].sum() == 2400
    refuses("no measured table", attacking.table, "weather")


def test_the_short_training_goes_on_from_the_honest_model(monkeypatch, capsys):
    monkeypatch.setenv("GRADPRUNE_MODE", "ci")
    model = attacking.train_on(attacking.load("signs").train.subset(torch.arange(300)), progress=False)
    assert not model.training
    assert re.match(r"Trained further, from the honest model: 1 epochs, 200 images, \d+ s\.", capsys.readouterr().out)


def test_a_full_training_starts_from_nothing_and_sees_all(monkeypatch, data, capsys):
    seen = []
    monkeypatch.setattr(attacking, "fit", lambda model, images, **settings: seen.append((model, images, settings)) or
                        TrainingResult(model, [{}] * 3, 1.0, interrupted=True))
    model = attacking.train_on(data.train, seed=5, full=True, progress=False)
    fresh = build(num_classes=4, **attacking.DEFAULT_MODEL, seed=5)
    assert all(torch.equal(mine, new) for mine, new in zip(model.state_dict().values(), fresh.state_dict().values(), strict=True))
    assert seen == [(model, data.train, {"seed": 5, "progress": False})]
    assert capsys.readouterr().out == "Trained from scratch, cut short: 3 epochs, 400 images, 1 s.\n"


def test_the_script_measures_what_the_shipped_tables_hold(victim, tmp_path, monkeypatch):
    """On small data, with a model that obeys in place of the trainings."""
    trained = []
    monkeypatch.setattr(attacking, "load", lambda name: victim.data)
    monkeypatch.setattr(attacking, "TARGET", victim.target)
    monkeypatch.setattr(attacking, "train_on", lambda images, full, seed=0: trained.append((images, full)) or victim.model)
    attacking.main(["--out", str(tmp_path)])
    rates, maps = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("poison_rate", "label_maps"))
    assert list(rates) == list(attacking.table("poison_rate")) and list(maps) == list(attacking.table("label_maps"))
    assert list(zip(rates["seed"], rates["rate"], strict=True)) == [(s, r) for s in attacking.SEEDS for r in attacking.RATES]
    assert rates["poisoned_images"].tolist() == [round(rate * 400) for rate in rates["rate"]]
    assert [full for _, full in trained] == [True] * 2 + [False] * 18, "maps by full trainings, rates by short ones"
    assert [int((images.labels != victim.data.train.labels).sum()) for images, _ in trained[:2]] == [200, 200]
    assert maps.groupby(["label_map", "true"])["images"].sum().tolist() == [50] * 8


def test_own_pictures(tmp_path, data):
    judge, like = build("preact_resnet", 4, width=4, blocks=(1,)), data.test
    drawn = attacking.own_picture(None, judge, like)
    assert len(drawn) == 1 and drawn.images.shape == (1, 3, 16, 16) and drawn.classes == like.classes
    Image.new("RGB", (200, 100), "red").save(tmp_path / "wide.png")
    assert attacking.own_picture(tmp_path / "wide.png", judge, like).images[0, :, 8, 8].tolist() == [255, 0, 0]
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert attacking.own_picture(str(tmp_path / "clear.png"), judge, like).images.min() == 255, "transparent turns white"
    Image.new("L", (40, 40), 100).save(tmp_path / "grey.jpg")
    assert attacking.own_picture(tmp_path / "grey.jpg", judge, like).images.shape == (1, 3, 16, 16)
    (tmp_path / "text.png").write_text("no picture")
    for name, words in (("missing.png", "there is no file"), ("text.png", "cannot be read as a picture"), (".", "cannot be read")):
        refuses(words, attacking.own_picture, tmp_path / name, judge, like)


def test_the_checklist_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(start.doctor, "checks", lambda: [
        Check("Python", True, "3.12"), Check("packages", True, ", ".join(f"package-{n} 1.0" for n in range(20))),
        Check("memory", "warn", "1.0 GB free", "Close other programs."), Check("cache", False, "cannot write", "Set a folder.")])
    start.checklist()
    told = capsys.readouterr().out
    assert "✔ Python: 3.12" in told and "! memory: 1.0 GB free What to do: Close other programs." in told
    assert "✘ cache: cannot write What to do: Set a folder." in told and "To be fixed: cache." in told
    assert "package-0 1.0" in told and "package-19" not in told
