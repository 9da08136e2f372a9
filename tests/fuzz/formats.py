"""The formats that strangers send: a valid file of each, how it is spoiled, and what must hold for what comes out.

A format writes its valid files into an empty folder once (`make`), spoils a copy (`spoil`) and reads it (`check`), which
raises InputError or returns after it has looked at the result.
"""

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
import torch
from mutators import blind, in_csv, in_json, in_npy, in_pickle, in_safetensors, in_zip, json_bytes
from PIL import Image

from gradprune.attacks import Picture
from gradprune.bench import ranking, summarise
from gradprune.bench.cells import COLUMNS
from gradprune.bench.store import FORMAT, Store, _line, read_facts, read_results
from gradprune.cli import scan as cli_scan
from gradprune.datasets import load, published, read_folder
from gradprune.lessons.runtime import predictions, progress
from gradprune.models import build, load_weights, predict
from gradprune.models.checkpoints import load_checkpoint, save_checkpoint
from gradprune.models.resizing import sizes
from gradprune.victims import Own, load_victim
from gradprune.victims.backdoorbench import read_attack_result
from gradprune.victims.victim import versions

NET = {"name": "preact_resnet", "num_classes": 3, "width": 2, "blocks": [1, 1]}
IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Format(NamedTuple):
    """See above. each: folder, rng -> None, spoils files in place."""

    make: Callable[[Path], None]
    spoil: Callable[[Path, Random], None]
    check: Callable[[Path], None]


def _model_answers(model: torch.nn.Module, images: torch.Tensor = IMAGES, classes: int = 3) -> None:
    logits = predict(model, images)
    assert logits.shape == (len(images), classes) and not logits.isnan().any()


def _images_are_whole(data: Any) -> None:
    shapes = {tuple(part.images.shape[1:]) for part in data}
    assert len(shapes) == 1 and all(len(part) == len(part.labels) and part.images.dtype == torch.uint8 for part in data)
    assert all(part.classes == data.train.classes and isinstance(name, str) for part in data for name in part.classes)
    assert all(part.labels.min() >= 0 and part.labels.max() < len(part.classes) for part in data if len(part))


# ---- checkpoints

def _npz(path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 255, (9, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(9) % 3
    np.savez(path, x_train=images, y_train=labels, x_defense=images[:3], y_defense=labels[:3], x_test=images[:6],
             y_test=labels[:6], classes=np.array(["a", "b", "c"]))


def _checkpoint(folder: Path, trigger: str = "trojannn", slim: bool = False) -> None:
    from gradprune.attacks import make_trigger
    _npz(folder / "data.npz")
    mark, model, made = make_trigger(trigger, size=3), build(**NET), dict(NET)
    if slim:
        made["sizes"] = {**sizes(model), "stages.0.0.conv1": [1, 2], "stages.0.0.bn2": [1], "stages.0.0.conv2": [2, 1]}
        model = build(**made)
    save_checkpoint(folder / "model", model, {
        "model": made, "data": {"name": "data.npz", "classes": ["a", "b", "c"]},
        "attack": {"trigger": trigger, "settings": mark.settings, "target": 1, "rate": 0.1, "poisoned_images": 4},
        "training": {"seed": 0, "epochs": 2}, "metrics": {"acc": 0.9, "asr": 0.8, "ra": 0.1}}, mark)


def _sealed(folder: Path) -> None:
    """Write the right hash on the card, as a stranger would."""
    card = json.loads((folder / "model.json").read_text())
    card["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "model.json").write_text(json.dumps(card))


def _spoil_weights(folder: Path, rng: Random) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(in_safetensors(rng, path.read_bytes()))
    _sealed(folder)


def _spoil_card(folder: Path, rng: Random) -> None:
    path = folder / "model.json"
    card = json.loads(path.read_text())
    if rng.random() < 0.5:
        part = rng.choice(("model", "attack", "data"))
        card[part] = in_json(rng, card[part])
        path.write_text(json.dumps(card))
    else:
        path.write_bytes(json_bytes(rng, card))


def _check_victim(folder: Path) -> None:
    victim = load_victim(folder / "model")
    figures = victim.evaluate()
    assert all(0 <= figure <= 1 for figure in figures) and 0 <= victim.target < len(victim.data.test.classes)
    assert f"{victim.target_name} {victim.card['attack'].get('rate', 0.0):.1%} {victim.trigger.extra_repr()}"
    assert all(f"{victim.card[key]['acc']:.1%}" for key in ("metrics",) if key in victim.card)
    found: Any = type("Found", (), {"classes": victim.data.test.classes, "suspect": None})
    cli_scan._card_says(victim.card, found)


def _check_weights_pair(folder: Path) -> None:
    model, _ = load_checkpoint(folder / "model")
    _model_answers(model)
    _check_victim(folder)


# ---- arrays, pictures

def _spoil_npz(folder: Path, rng: Random) -> None:
    path = folder / "data.npz"
    path.write_bytes(blind(rng, path.read_bytes()) if rng.random() < 0.2 else in_zip(rng, path.read_bytes(), in_npy))


def _check_npz(folder: Path) -> None:
    _images_are_whole(load(folder / "data.npz"))


ENDINGS = ("png", "jpg", "bmp", "ppm", "webp")


def _make_folder(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("stop", "yield"):
        (folder / label).mkdir()
        for number in range(6):
            mode = ("RGB", "L", "RGB", "RGB", "RGB", "RGB")[number]
            pixels = rng.integers(0, 255, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / label / f"{number}.{ENDINGS[number % 5]}")


def _spoil_folder(folder: Path, rng: Random) -> None:
    victim = rng.choice(sorted(folder.glob("*/*")))
    kind = rng.randrange(12)
    if kind < 7:
        victim.write_bytes(blind(rng, victim.read_bytes()))
    elif kind == 7:
        victim.rename(victim.with_suffix(rng.choice([f".{ending}" for ending in ENDINGS] + [".txt", ".PNG", ".npz"])))
    elif kind == 8:
        victim.unlink()
        rng.choice((lambda: os.mkfifo(victim), lambda: victim.symlink_to("/dev/zero"), lambda: victim.symlink_to(victim),
                    lambda: victim.mkdir(), lambda: victim.symlink_to("/etc/passwd")))()
    elif kind == 9:
        new = os.fsencode(folder) + b"/" + rng.choice((b"<b>x", b"\xff\xfe", b"a\nb", b"$x^$", b"train", b"x" * 200, b"\x1b[2J"))
        os.rename(os.fsencode(victim.parent), new)
    elif kind == 10:
        _make_gtsrb_table(folder, rng)
    else:
        for path in victim.parent.iterdir():
            path.unlink()


def _make_gtsrb_table(folder: Path, rng: Random) -> None:
    """The same pictures in GTSRB's own layout, with a spoiled table of labels."""
    (folder / "Final_Test" / "Images").mkdir(parents=True)
    (folder / "Training").mkdir()
    for place, path in enumerate(sorted(folder.glob("[sy]*"))):
        path.rename(folder / "Training" / f"{place:05d}")
    for number in range(3):
        Image.new("RGB", (9, 9)).save(folder / "Final_Test" / "Images" / f"{number:05d}.ppm")
    if rng.random() < 0.3:
        os.mkfifo(folder / "Final_Test" / "Images" / "pipe.ppm")
    lines = ["Filename;Width;Height;ClassId", *(f"{number:05d}.ppm;9;9;{number % 2}" for number in range(3)), "pipe.ppm;9;9;1"]
    (folder / "GT-final_test.csv").write_bytes(in_csv(rng, "\n".join(lines).encode(), check=False))


def _check_folder(folder: Path) -> None:
    read = read_folder(folder, size=8)
    _images_are_whole(read.data)
    assert all(isinstance(name, str) for name in read.skipped)


def _make_picture(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 5, 4), dtype=np.uint8)
    for ending in ("png", "webp", "jpg", "bmp", "ppm"):
        Image.fromarray(pixels).convert("RGBA" if ending in ("png", "webp") else "RGB").save(folder / f"mark.{ending}")


def _spoil_picture(folder: Path, rng: Random) -> None:
    path = rng.choice(sorted(folder.iterdir()))
    data = blind(rng, path.read_bytes())
    for other in folder.iterdir():
        other.unlink()
    path.write_bytes(data)


def _check_picture(folder: Path) -> None:
    for path in folder.iterdir():
        mark = Picture.read(path, opacity=0.5)(IMAGES)
        assert mark.shape == IMAGES.shape and mark.min() >= 0 and mark.max() <= 1


# ---- the published archives, by what reads them once their checksums are right

def _make_archives(folder: Path) -> None:
    batch = np.random.default_rng(0).integers(0, 9, (4, 3073), dtype=np.uint8)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    pickled = pickle.dumps({b"labels": batch[:, 0].tolist(), b"data": batch[:, 1:]}, 2)
    for archive, end, content in (("cifar-10-binary.tar.gz", ".bin", batch.tobytes()), ("cifar-10-python.tar.gz", "", pickled)):
        with tarfile.open(folder / archive, "w:gz") as file:
            for name in names:
                member = tarfile.TarInfo(f"cifar/{name}{end}")
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    for part, count in (("train", 6), ("t10k", 4)):
        (folder / f"{part}-x.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + np.array([count, 28, 28], ">u4").tobytes() + bytes(count * 784)))
        (folder / f"{part}-y.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + np.array([count], ">u4").tobytes() + bytes(range(count))))
    picture = io.BytesIO()
    Image.new("RGB", (9, 9)).save(picture, "PPM")
    for archive, inside in (("train.zip", "GTSRB/Training/0000{}/x{}.ppm"), ("test.zip", "GTSRB/Final_Test/Images/0000{}{}.ppm")):
        with zipfile.ZipFile(folder / archive, "w") as file:
            for number in range(4):
                file.writestr(inside.format(number, number), picture.getvalue())
    with zipfile.ZipFile(folder / "labels.zip", "w") as file:
        file.writestr("GT-final_test.csv", "Filename;ClassId\n" + "".join(f"0000{n}{n}.ppm;{n}\n" for n in range(4)))


READERS = {"cifar10": (("cifar-10-binary.tar.gz",), ("cifar-10-python.tar.gz",)),
           "fashion_mnist": (("train-x.gz", "train-y.gz", "t10k-x.gz", "t10k-y.gz"),), "gtsrb": (("train.zip", "test.zip", "labels.zip"),)}


def _in_member(rng: Random, name: str, data: bytes) -> bytes:
    return in_csv(rng, data, check=False) if name.endswith("csv") else in_pickle(rng, "pkl", data) if b"\x80" in data[:1] else blind(rng, data)


def _spoil_archive(folder: Path, rng: Random) -> None:
    name = rng.choice(sorted(READERS))
    files = rng.choice(READERS[name])
    path = folder / rng.choice(files)
    data = path.read_bytes()
    if rng.random() < 0.2:
        data = blind(rng, data)
    elif path.suffix == ".zip":
        data = in_zip(rng, data, _in_member)
    elif ".tar" in path.name:
        data = _in_tar(rng, data)
    else:
        data = gzip.compress(blind(rng, gzip.decompress(data)))
    path.write_bytes(data)
    (folder / "told").write_text(json.dumps([name, files]))


def _in_tar(rng: Random, data: bytes) -> bytes:
    """A tar with one member spoiled, renamed, or made a link."""
    out, chosen = io.BytesIO(), rng.randrange(6)
    with tarfile.open(fileobj=io.BytesIO(data)) as old, tarfile.open(fileobj=out, mode="w:gz") as new:
        for place, member in enumerate(old):
            content = old.extractfile(member).read()
            if place == chosen:
                kind = rng.randrange(8)
                member.name = rng.choice(("../../data_batch_1", "/data_batch_1", member.name)) if kind == 0 else member.name
                member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)) if kind == 1 else member.type
                member.linkname = "/etc/passwd" if kind == 1 else ""
                content = content if kind < 2 else _in_member(rng, member.name, content)
                member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _check_archive(folder: Path) -> None:
    name, files = json.loads((folder / "told").read_text()) if (folder / "told").exists() else ("cifar10", READERS["cifar10"][0])
    published._convert(name, [folder / file for file in files], folder / f"{name}.npz")
    _images_are_whole(published._read(name, folder / f"{name}.npz", 0))


# ---- benches, progress

def _make_bench(folder: Path) -> None:
    lines = [",".join([*COLUMNS, "check"])]
    for attack in ("badnets", "sig"):
        for defense in ("ft", "grad_prune"):
            for seed in range(2):
                row = {name: 0.5 if kind is float else 1 if kind is int else "1" for name, kind in COLUMNS.items()}
                lines.append(_line(row | {"attack": attack, "defense": defense, "spc": 2, "seed": seed, "error": ""}))
    (folder / "cells.csv").write_text("\n".join(lines) + "\n")
    (folder / "bench.json").write_text(json.dumps({"format": FORMAT, **versions(), "checkpoints": {"badnets": "12", "sig": "34"}}))


def _spoil_bench(folder: Path, rng: Random) -> None:
    table, facts = folder / "cells.csv", folder / "bench.json"
    kind = rng.randrange(10)
    if kind < 7:
        table.write_bytes(in_csv(rng, table.read_bytes(), check=rng.random() < 0.8))
    elif kind < 9:
        facts.write_bytes(json_bytes(rng, json.loads(facts.read_text())))
    else:
        path = rng.choice((table, facts, folder / ".lock"))
        path.unlink(missing_ok=True)
        rng.choice((lambda: os.mkfifo(path), lambda: path.symlink_to(folder.parent / "canary"), lambda: path.mkdir()))()


def _check_bench(folder: Path) -> None:
    from gradprune.base.errors import InputError
    refused = None
    try:
        with Store(folder, {"badnets": "12"}) as store:
            store.add({**{name: 0.5 if kind is float else 1 if kind is int else "x" for name, kind in COLUMNS.items()}, "error": ""})
            store.tidy([])
    except InputError as error:
        refused = error
    table, facts = read_results(folder), read_facts(folder)
    assert list(table.columns) == list(COLUMNS) and isinstance(facts["checkpoints"], dict)
    means, ranks = summarise(table), ranking(table)
    figures = means[["acc", "asr", "ra", "der"]].to_numpy(float), ranks[["der"]].to_numpy(float)
    assert all(math.isfinite(value) and 0 <= value <= 1 for part in figures for value in part.flat if value == value)
    if refused:
        raise refused


def _make_progress(folder: Path) -> None:
    (folder / "progress.json").write_text(json.dumps({"version": 1, "answers": {"02.asr": 0.4, "02.which": "a"},
                                                      "exercises": {"01.write": "correct"}}))


def _spoil_progress(folder: Path, rng: Random) -> None:
    path = folder / "progress.json"
    path.write_bytes(json_bytes(rng, json.loads(path.read_text())))


def _check_progress(folder: Path) -> None:
    os.environ["GRADPRUNE_PROGRESS"] = str(folder / "progress.json")
    for kind in progress._memory.values():
        kind.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        progress.describe("02")
        for key in ("02.asr", "02.which"):
            for actual, form in ((0.5, ".2f"), (3.0, "d"), ("a", ".2f")):
                predictions.reveal(key, actual, form)
        progress.remember("answers", "02.new", 0.25)
        assert progress.recall("answers", "02.new") == 0.25
    assert json.loads((folder / "progress.json").read_text())["answers"]["02.new"] == 0.25


# ---- foreign weights

def _attack_result(folder: Path) -> dict[str, Any]:
    old = build("preact_resnet18", 3, width=2, last_norm=False)
    names = {key.replace("stages.", "layer").replace(".shortcut.", ".shortcut.0."): tensor for key, tensor in old.state_dict().items()}
    theirs = {f"layer{int(key[5]) + 1}{key[6:]}" if key.startswith("layer") else key: tensor for key, tensor in names.items()}
    return {"model_name": "preactresnet18", "num_classes": 3, "model": theirs, "clean_data": "cifar10", "img_size": (8, 8, 3),
            "bd_train": {"poison_indicator": np.array([0, 1, 1]), "bd_data_container": {"data_dict": {
                0: {"path": "x/0.png", "other_info": [1, 0, 1]}, 2: {"path": "x/2.png", "other_info": [1, 0, 1]}}}},
            "bd_test": {"original_index": [0, 1], "y": torch.tensor([1, 1]), "x": ["a", "b"]}}


def _make_weights(folder: Path) -> None:
    state = build(**NET).state_dict()
    torch.save({"epoch": 3, "net": state}, folder / "zip.pth")
    torch.save({"epoch": 3, "net": state}, folder / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(_attack_result(folder), folder / "attack_result.pt")
    from safetensors.torch import save
    (folder / "plain.safetensors").write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))
    _npz(folder / "data.npz")


def _spoil_foreign(folder: Path, rng: Random) -> None:
    path = folder / rng.choice(("zip.pth", "zip.pth", "old.pt", "attack_result.pt", "attack_result.pt", "plain.safetensors"))
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        data = in_safetensors(rng, data)
    elif rng.random() < 0.15:
        data = blind(rng, data)
    else:
        data = in_pickle(rng, "pkl", data) if path.name == "old.pt" else in_zip(rng, data, in_pickle)
    path.write_bytes(data)
    (folder / "told").write_text(path.name)


def _check_foreign(folder: Path) -> None:
    name = (folder / "told").read_text() if (folder / "told").exists() else "attack_result.pt"
    if name != "attack_result.pt":
        _model_answers(load_weights(build(**NET), folder / name))
        Own(model="preact_resnet", data=str(folder / "data.npz")).open(folder / name)
        return
    found = read_attack_result(folder / name)
    _model_answers(found.model)
    assert found.poisoned_train.dtype == found.poisoned_test.dtype == torch.int64
    Own(data=str(folder / "data.npz")).open(folder / name)


FORMATS = {
    "weights": Format(_checkpoint, _spoil_weights, _check_weights_pair),
    "card": Format(_checkpoint, _spoil_card, _check_victim),
    "picture_card": Format(lambda folder: _checkpoint(folder, "badnets"), _spoil_card, _check_victim),
    "slim": Format(lambda folder: _checkpoint(folder, slim=True), _spoil_card, _check_victim),
    "npz": Format(lambda folder: _npz(folder / "data.npz"), _spoil_npz, _check_npz),
    "folder": Format(_make_folder, _spoil_folder, _check_folder),
    "bench": Format(_make_bench, _spoil_bench, _check_bench),
    "progress": Format(_make_progress, _spoil_progress, _check_progress),
    "foreign": Format(_make_weights, _spoil_foreign, _check_foreign),
    "trigger": Format(_make_picture, _spoil_picture, _check_picture),
    "archives": Format(_make_archives, _spoil_archive, _check_archive),
}
