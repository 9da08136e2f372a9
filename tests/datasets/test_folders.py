"""Folders of pictures: layouts, pictures of every kind, damaged ones, the split, the cache, and bad folders."""

import logging
import os
import shutil
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import SHARED, refuses, same_data
from PIL import Image
from torchvision.datasets.folder import default_loader

from gradprune.attacks import Picture
from gradprune.datasets import folder as folder_module
from gradprune.datasets import load, read_folder
from gradprune.datasets.folder import decode

GTSRB = SHARED / "data" / "gtsrb_ppm_small"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(path, seed=0, size=(9, 7), mode="RGB", **options):
    """A picture of noise around a colour that its seed decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (size[1], size[0], 3)) + np.array([seed * 37 % 190, 90, 20])
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(path, **options)
    return path


def folder(root, classes=("cat", "dog", "owl"), count=10, ending=".png"):
    for label, name in enumerate(classes):
        for i in range(count):
            picture(root / name / f"{i:02d}{ending}", seed=label * 100 + i)
    return root


def pixels(part):
    return [image.numpy().tobytes() for image in part.images]


def test_a_folder_becomes_three_parts_that_share_no_image(tmp_path):
    data = load(folder(tmp_path / "pets"))
    assert [len(part) for part in data] == [21, 3, 6]
    for part, each in zip(data, (7, 1, 2), strict=True):
        assert part.classes == ("cat", "dog", "owl")
        assert part.labels.bincount().tolist() == [each] * 3
        assert part.images.shape[1:] == (3, 32, 32)
    assert len({image for part in data for image in pixels(part)}) == 30
    assert same_data(data, load(str(tmp_path / "pets")))
    assert not same_data(data, load(tmp_path / "pets", seed=1))


def test_pixels_and_labels_are_those_of_the_files(tmp_path):
    root = folder(tmp_path / "pets", count=4)
    data = load(root, size=8)
    wanted = {}
    for path in sorted(root.rglob("*.png")):
        resized = Image.open(path).resize((8, 8), Image.Resampling.BILINEAR)
        wanted[np.asarray(resized).transpose(2, 0, 1).tobytes()] = path.parent.name
    got = {image: part.classes[label] for part in data for image, label in zip(pixels(part), part.labels, strict=True)}
    assert got == wanted


def test_own_test_and_defense_parts_are_kept(tmp_path):
    folder(tmp_path / "a" / "train", count=10)
    folder(tmp_path / "a" / "val", ("cat", "owl"), count=2)
    data = load(tmp_path / "a")
    assert [len(part) for part in data] == [27, 3, 4]
    assert data.test.labels.tolist() == [0, 0, 2, 2], "labels are those of the training classes"
    folder(tmp_path / "a" / "test", count=3)
    folder(tmp_path / "a" / "defense", count=5)
    assert [len(part) for part in load(tmp_path / "a")] == [30, 15, 9]
    picture(tmp_path / "a" / "test" / "cow" / "1.png")
    refuses(r"test has folders that are no class: cow\.", load, tmp_path / "a")


def test_a_class_may_be_called_train(tmp_path):
    assert load(folder(tmp_path / "a", ("bus", "test", "train"), count=3)).train.classes == ("bus", "test", "train")


def test_more_than_the_memory_holds_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * 9 * 3 * 512 * 512))
    refuses(r"9 pictures of 512 x 512 pixels take 0\.0 GB, .* choose a smaller size\.", load,
            folder(tmp_path / "pets", count=3), size=512)
    load(tmp_path / "pets")


def test_memory_that_runs_out_is_no_fault_of_the_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "decode", Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        load(folder(tmp_path / "pets", count=3))


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    """In one sentence, not as a class without pictures; a chmod would not stop root."""
    root, real = folder(tmp_path / "pets", count=3), os.listdir

    def locked(path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)
    monkeypatch.setattr(os, "listdir", locked)
    refuses(r"cannot read the folder .*dog: Permission denied\.$", load, root)


def test_every_kind_of_picture_is_read(tmp_path, caplog):
    for name in ("cat", "dog"):
        for i, ending in enumerate((".png", ".jpg", ".JPEG", ".ppm", ".bmp", ".webp")):
            picture(tmp_path / "k" / name / f"{i}{ending}", i, (50, 40))
        picture(tmp_path / "k" / name / "grey.png", 3, mode="L")
        picture(tmp_path / "k" / name / "palette.png", 4, mode="P")
        picture(tmp_path / "k" / name / "clear.png", 5, mode="RGBA")
        picture(tmp_path / "k" / name / "print.jpg", 6, mode="CMYK")
        picture(tmp_path / "k" / name / "bits.png", 7, mode="1")
        Image.fromarray(np.full((5, 5), 256 * 100, np.uint16)).save(tmp_path / "k" / name / "deep.png")
        (tmp_path / "k" / name / "notes.txt").write_text("no picture")
        (tmp_path / "k" / name / "._1.png").write_text("left by a Mac")
    found = read_folder(tmp_path / "k")
    assert (found.skipped, found.grey) == ((), 6)
    assert "6 pictures" in caplog.text and "turned into RGB" in caplog.text
    assert sum(map(len, found.data)) == 24
    assert any((image == 100).all() for part in found.data for image in part.images), "16 bits become 8"


def bomb(path, side=60000):
    """A PNG that claims a picture of side x side pixels."""
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
                     + chunk(b"IDAT", zlib.compress(b"\0" * 100000)) + chunk(b"IEND", b""))


def test_damaged_pictures_are_listed_and_skipped(tmp_path, caplog):
    root = folder(tmp_path / "pets", ("cat", "dog"))
    good = read_folder(root).data
    (root / "cat" / "empty.png").touch()
    (root / "cat" / "page.jpg").write_text("<html>not found</html>")
    bomb(root / "dog" / "bomb.png")
    bomb(root / "dog" / "small bomb.png", 9000)
    (root / "dog" / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    whole = picture(root / "dog" / "half.bmp", size=(90, 70)).read_bytes()
    (root / "dog" / "half.bmp").write_bytes(whole[: len(whole) // 2])
    with caplog.at_level(logging.WARNING, "gradprune"):
        found = read_folder(root)
        again = read_folder(root)
    assert found.skipped == again.skipped == (
        "cat/empty.png: it is empty", "cat/page.jpg: damaged, or no picture of a kind that is read", "dog/bomb.png: it claims too many pixels",
        "dog/half.bmp: damaged, or no picture of a kind that is read", "dog/script.png: damaged, or no picture of a kind that is read",
        "dog/small bomb.png: it claims too many pixels")
    assert len(caplog.messages) == 2
    assert all("6 pictures in" in message and message.endswith(" and 1 more.") for message in caplog.messages)
    assert same_data(found.data, good), "the good ones are split as if the others were not there"


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    root = folder(tmp_path / "pets", ("cat", "dog"), count=4)
    good = load(root)
    secret = picture(tmp_path / "secret" / "a.png", 9)
    (root / "cat" / "link.png").symlink_to(secret)
    (root / "spy").symlink_to(secret.parent, target_is_directory=True)
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert same_data(load(root), good)
    (root / "cat" / "inside.png").symlink_to(root / "dog" / "00.png")
    assert sum(map(len, load(root))) == 9
    (tmp_path / "elsewhere").symlink_to(root, target_is_directory=True)
    assert sum(map(len, load(tmp_path / "elsewhere"))) == 9, "the folder itself may be a link"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the pictures that were decoded."""
    names, decode = [], folder_module.decode
    monkeypatch.setattr(folder_module, "decode", lambda path, size: names.append(path.name) or decode(path, size))
    return names


def test_pictures_are_decoded_once(tmp_path, decoded, cache):
    root = folder(tmp_path / "pets", count=4)
    first = load(root)
    assert len(decoded) == 12
    assert same_data(first, load(root)) and not same_data(first, load(root, seed=3))
    assert len(decoded) == 12
    assert len(list(cache.iterdir())) == 1
    load(root, size=16)
    assert len(decoded) == 24, "another size is another copy"
    next(cache.iterdir()).write_bytes(b"damaged")
    assert same_data(first, load(root)) and load(root, size=16)
    assert len(decoded) == 36, "a damaged copy is made again"


def other_pixels(path):
    """... of the same size and time."""
    state = path.stat()
    picture(path, seed=77)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


@pytest.mark.parametrize("change", [
    lambda path: os.utime(path, ns=(1, 1)), lambda path: path.rename(path.with_name("zz.bmp")), Path.unlink,
    lambda path: picture(path.with_name("new.bmp")), other_pixels])
def test_a_changed_folder_is_read_again(tmp_path, decoded, change):
    root = folder(tmp_path / "pets", count=4, ending=".bmp")
    load(root)
    decoded.clear()
    change(root / "cat" / "00.bmp")
    load(root)
    assert decoded


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    a, b = (folder(tmp_path / side / "pets", count=4, ending=".bmp") for side in "ab")
    for i, path in enumerate(sorted(b.rglob("*.bmp"))):
        picture(path, seed=500 + i)
    assert not same_data(load(a), load(b))


def test_folders_work_without_a_cache(tmp_path, cache):
    cache.write_text("a file where the folder should be")
    assert len(load(folder(tmp_path / "pets", count=5)).test) == 3


def empty(root):
    shutil.rmtree(root / "owl")
    (root / "owl").mkdir()


def spoil(*parts):
    def change(root):
        for path in sorted(root.joinpath(*parts).rglob("*.png")):
            path.write_bytes(b"")
    return change


def flatten(root):
    for name in ("cat", "dog", "owl"):
        shutil.move(root / name / "00.png", root / f"{name}.png")
        shutil.rmtree(root / name)


@pytest.mark.parametrize(("change", "sentence"), [
    (empty, r"class 'owl' is empty: there is no picture in .*owl \(\.png, "),
    (spoil(), r"none of the 9 pictures in .* can be read \(cat/00\.png: it is empty\)\.$"),
    (spoil("dog"), r"class 'dog' in .* has 0 pictures that can be read; it takes 3, one for each part\."),
    (lambda root: (root / "dog" / "01.png").unlink(), r"class 'dog' in .* has 2 pictures"),
    (flatten, r"holds pictures, but no class folders"),
    (lambda root: [shutil.rmtree(root / name) for name in ("dog", "owl")],
     r"has one class folder only, 'cat'; a classifier takes two or more\.$"),
    (lambda root: shutil.copytree(root, root / "pets") and [shutil.rmtree(root / name) for name in ("cat", "dog", "owl")],
     r"has one class folder only, 'pets'; .* Are the classes in .*pets/pets\?$"),
    (lambda root: [shutil.rmtree(path) for path in list(root.iterdir())], r"is no data set: it holds no class folders\."),
])
def test_bad_folders_get_one_sentence(tmp_path, change, sentence):
    root = folder(tmp_path / "pets", count=3)
    load(root)
    change(root)
    assert refuses(sentence, load, root)[-1] in ".?"


def test_what_is_passed_over_is_told(tmp_path, caplog):
    root = folder(tmp_path / "pets", count=3)
    Image.new("RGB", (9, 9)).save(root / "dog" / "photo.TIF")
    (root / "cat" / "more").mkdir()
    for name in ("notes.txt", ".hidden.gif", "Thumbs.db"):
        (root / "cat" / name).write_text("nothing that counts")
    load(root)
    assert [record.getMessage().split("kinds: ")[1] for record in caplog.records] == ["cat/more, dog/photo.TIF."]
    caplog.clear()
    shutil.rmtree(root / "cat" / "more")
    (root / "dog" / "photo.TIF").unlink()
    load(root)
    assert not caplog.records


@pytest.mark.parametrize("size", [0, 7, 513, 32.0, "32"])
def test_sizes_outside_the_range_are_refused(tmp_path, size):
    refuses(r"size must be a whole number in 8\.\.512", load, folder(tmp_path / "pets", count=3), size=size)


def test_size_is_for_folders_alone(tmp_path):
    refuses("size is for folders of pictures, and 'signs' is none", load, "signs", size=16)
    refuses("No folder at", read_folder, tmp_path / "none")


def test_the_page_on_data_works_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "pictures", count=6)
    page = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
    assert "Dataset(train=ImageSet(12 images, 3x32x32, 3 classes)" in capsys.readouterr().out


# ---- GTSRB as its authors and torchvision lay it out


def gtsrb(root, names=("00000", "00007", "00012"), training="GTSRB/Training"):
    folder(root / training, names, count=4, ending=".ppm")
    for name in names:
        (root / training / name / f"GT-{name}.csv").write_text("Filename;Width\n")
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for i in range(5):
        picture(root / "GTSRB/Final_Test/Images" / f"{i:05d}.ppm", 900 + i)
        lines.append(f"{i:05d}.ppm;9;7;1;1;5;5;{(0, 7, 12)[i % 3]}")
    (root / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("training", ["GTSRB/Training", "GTSRB/Final_Training/Images"])
def test_the_official_layout_of_gtsrb(tmp_path, training):
    data = load(gtsrb(tmp_path / "g", training=training))
    assert [len(part) for part in data] == [9, 3, 5]
    assert data.test.classes == ("00000", "00007", "00012")
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1]


def test_a_picture_that_the_table_of_gtsrb_names_may_be_missing(tmp_path):
    root = gtsrb(tmp_path / "g")
    (root / "GTSRB/Final_Test/Images/00003.ppm").unlink()
    found = read_folder(root)
    assert found.skipped == ("GTSRB/Final_Test/Images/00003.ppm: no such file or directory",)
    assert found.data.test.labels.tolist() == [0, 1, 2, 1]


def test_gtsrb_without_its_test_pictures_is_divided(tmp_path):
    root = gtsrb(tmp_path / "g")
    shutil.rmtree(root / "GTSRB/Final_Test")
    data = load(root)
    assert sum(map(len, data)) == 12 and all(len(part) for part in data) and data.test.classes == ("00000", "00007", "00012")


def test_large_photographs_are_shrunk_as_others_are(tmp_path):
    smooth = np.linspace(0, 255, 900 * 700 * 3).reshape(700, 900, 3).astype(np.uint8)
    for name in ("cat", "dog"):
        for i in range(3):
            (tmp_path / "p" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.roll(smooth, i * 100, 0)).save(tmp_path / "p" / name / f"{i}.jpg", quality=95)
    data = load(tmp_path / "p")
    whole = [np.asarray(Image.fromarray(np.roll(smooth, i * 100, 0)).resize((32, 32), Image.Resampling.BILINEAR)) for i in range(3)]
    for part in data:
        for image in part.images:
            assert min(np.abs(image.permute(1, 2, 0).numpy().astype(int) - other).mean() for other in whole) < 2


@pytest.mark.parametrize("row", ["../../../x.ppm;9;7;1;1;5;5;0", "00000.ppm;9;7;1;1;5;5;3", "00000.ppm", "\0" * 300000,
                                 "a\0.ppm;9;7;1;1;5;5;0", "x" * 5000 + ".ppm;9;7;1;1;5;5;0"])
def test_bad_rows_in_the_table_of_gtsrb(tmp_path, row):
    root = gtsrb(tmp_path / "g")
    with (root / "GT-final_test.csv").open("a") as table:
        table.write(row + "\n")
    refuses("row without a file name and one of the 3 classes", load, root)


def test_gtsrb_without_its_table(tmp_path):
    root = gtsrb(tmp_path / "g")
    (root / "GT-final_test.csv").unlink()
    refuses(r"are missing: put GT-final_test\.csv into", load, root)


@pytest.mark.skipif(not GTSRB.is_dir(), reason=f"{GTSRB} is absent: GTSRB's true pictures in their native sizes")
def test_the_true_gtsrb_in_native_sizes(cache, decoded):
    data = load(GTSRB)
    assert [len(part) for part in data] == [129, 43, 129]
    assert data.train.classes == tuple(f"{label:05d}" for label in range(43))
    for part in data:
        assert part.labels.bincount().tolist() == [len(part) // 43] * 43
        assert part.images.float().std() > 20
    decoded.clear()
    assert same_data(data, load(GTSRB))
    assert not decoded


@pytest.mark.parametrize("names", [
    ("Training", "Testing"), ("train", "validation"), ("train", "valid"), ("Train", "Eval"), ("train", "dev"), ("Training Set", "Test_Set"),
    ("seg_train/seg_train", "seg_test/seg_test"), ("archive/TRAIN", "archive/VAL"), ("train2017", "val2017"), ("train_images", "holdout"),
    ("data/pets/train", "data/pets/validation"), ("TRAIN",), ("train", "flat"), ("train", "test", "val")])  # the last: too few for the defender
def test_parts_by_the_names_that_are_in_use(tmp_path, caplog, names):
    for name, count in zip(names, (10, 2, 2), strict=False):
        if name == "flat":  # test pictures without labels are of no use here
            picture(tmp_path / "a" / "test" / "1.png")
        else:
            folder(tmp_path / "a" / name, count=count)
    data = load(tmp_path / "a")
    sizes = [21, 3, 6] if names in (("TRAIN",), ("train", "flat")) else [27, 3, 6]
    assert [len(part) for part in data] == sizes and data.train.classes == ("cat", "dog", "owl")
    told = " ".join(record.getMessage() for record in caplog.records)
    assert ("val (no known part)" in told) == (len(names) == 3)


def test_pictures_in_the_images_folder_of_their_class(tmp_path):
    """Tiny ImageNet's layout: train/CLASS/images/*, and a test part without labels, which is told."""
    folder(tmp_path / "plain", count=10)
    for name in ("cat", "dog", "owl"):
        (tmp_path / "a" / "train" / name).mkdir(parents=True)
        (tmp_path / "plain" / name).rename(tmp_path / "a" / "train" / name / "images")
        (tmp_path / "a" / "train" / name / f"{name}_boxes.txt").write_text("0 0 9 9")
    picture(tmp_path / "a" / "test" / "images" / "0.png", 1)
    data = load(tmp_path / "a")
    assert [len(part) for part in data] == [21, 3, 6] and data.train.classes == ("cat", "dog", "owl")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a" / "train" / "cat" / "images").rename(tmp_path / "elsewhere" / "images")
    (tmp_path / "a" / "train" / "cat" / "images").symlink_to(tmp_path / "elsewhere" / "images")
    refuses("class 'cat' is empty", load, tmp_path / "a")


def test_tiny_imagenets_validation_part_and_its_table(tmp_path, caplog):
    """val/images/* with the labels in val_annotations.txt: the test part, as test/images has none."""
    folder(tmp_path / "a" / "train", count=10)
    rows = [("v0.png", "dog"), ("v1.png", "cat"), ("v2.png", "owl"), ("v3.png", "not one of these")]
    for place, (name, _) in enumerate(rows):
        picture(tmp_path / "a" / "val" / "images" / name, 40 + place)
        picture(tmp_path / "a" / "test" / "images" / name, 50)
    table = tmp_path / "a" / "val" / "val_annotations.txt"
    table.write_text("".join(f"{name}\t{label}\t0\t32\t44\t62\n" for name, label in rows))
    data = load(tmp_path / "a")
    assert [len(part) for part in data] == [27, 3, 3] and data.test.labels.tolist() == [1, 0, 2]
    shown = [decode(tmp_path / "a" / "val" / "images" / f"v{place}.png", 32)[0] for place in range(3)]
    assert np.array_equal(data.test.images.numpy(), np.stack(shown))
    assert "test (no class folders)" in caplog.text and "training pictures are the test images" not in caplog.text
    table.write_text("v0.png\tcat\nv1.png\tcat\nv2.png\tcat\n")
    caplog.clear()
    assert load(tmp_path / "a").test.labels.tolist() == [0, 0, 0], "another table is another data set"
    assert "has no picture of dog, owl, so" in caplog.text
    shutil.rmtree(tmp_path / "a" / "test")
    folder(tmp_path / "a" / "test", count=1)
    assert [len(part) for part in load(tmp_path / "a")] == [27, 3, 3], "too few for the defender"
    shutil.rmtree(tmp_path / "a" / "test")
    for text, words in (("../../train/cat/0.png\tcat", "without a file name"), ("v0.png cat", "a class"), ("v0.png\tx", "names none")):
        table.write_text(text)
        refuses(words, load, tmp_path / "a")


def test_a_cameras_turn_is_ignored_as_torchvision_does_and_told(tmp_path, caplog):
    for name in ("cat", "dog"):
        for i in range(3):
            path = picture(tmp_path / "p" / name / f"{i}.jpg", i, (40, 30))
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as upright:
        upright.save(path, exif=exif)
    found = read_folder(tmp_path / "p")
    assert found.turned == 1 and "1 picture in" in caplog.text and "rotation in the EXIF data" in caplog.text
    seen = np.asarray(default_loader(path).resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert any(np.abs(image.numpy().astype(int) - seen).max() <= 1 for part in found.data for image in part.images)


def test_a_validation_part_beside_a_test_part_is_the_defenders(tmp_path):
    for name, count in (("train", 10), ("test", 3), ("val", 12)):
        folder(tmp_path / "a" / name, count=count)
    assert [len(part) for part in load(tmp_path / "a")] == [30, 36, 9]


def test_a_second_part_whose_name_says_nothing_is_told(tmp_path, caplog):
    folder(tmp_path / "a" / "train", count=10)
    folder(tmp_path / "a" / "others", count=2)
    assert [len(part) for part in load(tmp_path / "a")] == [21, 3, 6]
    told = [record.getMessage() for record in caplog.records]
    assert "others (no known part)" in told[0] and "20 % of the training pictures are the test images" in told[1]


@pytest.mark.parametrize("ending", ["png", "pgm"])
def test_deep_pictures_are_scaled_alike_wherever_they_are_read(tmp_path, ending):
    values = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    path = tmp_path / f"deep.{ending}"
    if ending == "png":
        Image.fromarray(values.astype(np.uint16) * 257).save(path)
    else:
        path.write_bytes(b"P5 8 8 65535\n" + (values.astype(">u2") * 257).astype(">u2").tobytes())
    wanted = torch.from_numpy(values).expand(3, 8, 8)
    pixels, colour, _ = decode(path, 8)
    assert torch.equal(torch.from_numpy(pixels), wanted) and not colour
    assert torch.equal((Picture.read(path, opacity=0.5).picture * 255).round().to(torch.uint8), wanted)
