"""CIFAR-10, GTSRB and Fashion-MNIST: from archives of the true layout to three parts, and `gradprune data`."""

import dataclasses
import gzip
import hashlib
import inspect
import io
import logging
import multiprocessing
import os
import pickle
import socket
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import SHARED, as_json, interrupt_call, refused, refuses, run, write_pictures
from PIL import Image
from torchvision.datasets import CIFAR10, GTSRB, FashionMNIST

from gradprune.base import paths
from gradprune.base.errors import InputError
from gradprune.cli.jobs import attack_and_save
from gradprune.datasets import archives, download, get, load, published
from gradprune.datasets.published import PUBLISHED, state
from gradprune.victims import load_victim

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """The folder of the published sets, empty."""
    monkeypatch.setenv("GRADPRUNE_DATA", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def images(count, side=32, channels=3, seed=0):
    """Images and labels; all of a label have a colour of their own."""
    labels = np.arange(count) % 10
    noise = np.random.default_rng(seed).integers(0, 60, (count, channels, side, side))
    return (noise + labels[:, None, None, None] * 19).astype(np.uint8), labels


# ---- archives of the true layout


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def cifar_binary(path, x, y, extra=()):
    """cifar-10-binary.tar.gz of few images: six batches of rows of a label and 3072 pixels."""
    rows = np.concatenate([y[:, None].astype(np.uint8), x.reshape(len(x), -1)], 1)
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "cifar-10-batches-bin/batches.meta.txt", b"airplane\nautomobile\n")
        for name, batch in zip(BATCHES, np.split(rows, 6), strict=True):
            add(tar, f"cifar-10-batches-bin/{name}.bin", batch.tobytes())
        for member, content in extra:
            tar.addfile(member, content)
    return path


class Old(pickle._Pickler):
    """Writes strings as Python 2 did, which made the true batches."""

    def save_text(self, text):
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(content)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: save_text, bytes: save_text}


def dumped(batch):
    out = io.BytesIO()
    Old(out, protocol=2).dump(batch)
    return out.getvalue().replace(b"cnumpy._core.multiarray", b"cnumpy.core.multiarray")


def cifar_python(path, x, y, batch=None):
    with tarfile.open(path, "w:gz") as tar:
        for name, pixels, labels in zip(BATCHES, np.split(x.reshape(len(x), -1), 6), np.split(y, 6), strict=True):
            content = dumped({"data": pixels, "labels": labels.tolist(), "batch_label": name, "filenames": ["a.png"] * len(y)})
            add(tar, f"cifar-10-batches-py/{name}", batch or content)
    return path


def ppm(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PPM")
    return out.getvalue()


def gtsrb_zips(folder, training, test):
    """The three zips; training: label -> pictures; test: pairs of a label and a picture (uint8 H, W, 3)."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "GTSRB-Training_fixed.zip", "w") as file:
        for label, pictures in training.items():
            file.writestr(f"GTSRB/Training/{label:05d}/GT-{label:05d}.csv", "Filename;Width\n")
            for i, picture in enumerate(pictures):
                file.writestr(f"GTSRB/Training/{label:05d}/00000_{i:05d}.ppm", ppm(picture))
    lines = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    with zipfile.ZipFile(folder / "GTSRB_Final_Test_Images.zip", "w") as file:
        file.writestr("GTSRB/Readme-Images-Final-test.txt", "about")
        for i, (label, picture) in enumerate(test):
            file.writestr(f"GTSRB/Final_Test/Images/{i:05d}.ppm", ppm(picture))
            lines.append(f"{i:05d}.ppm;9;9;1;1;5;5;{label}")
    with zipfile.ZipFile(folder / "GTSRB_Final_Test_GT.zip", "w") as file:
        file.writestr("GT-final_test.csv", "\r\n".join(lines) + "\r\n")


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()


def fashion_files(folder, x, y, count, pack=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, kind, array in (("train", "images-idx3", x[:count]), ("train", "labels-idx1", y[:count]),
                              ("t10k", "images-idx3", x[count:]), ("t10k", "labels-idx1", y[count:])):
        path, content = folder / f"{name}-{kind}-ubyte", idx(array)
        path.with_name(path.name + ".gz" * pack).write_bytes(gzip.compress(content) if pack else content)


@pytest.fixture
def expect(monkeypatch):
    """Let the files that lie in a folder be the published ones: their MD5, and addresses on a server."""
    def expect(name, folder, url="http://127.0.0.1:9/"):
        def of(remote):
            path = folder / remote.path
            if not path.is_file():
                return remote
            content = path.read_bytes()
            return dataclasses.replace(remote, urls=(url + remote.path,), md5=hashlib.md5(content).hexdigest(), size=len(content))
        choices = tuple(tuple(map(of, choice)) for choice in PUBLISHED[name].choices)
        monkeypatch.setitem(PUBLISHED, name, dataclasses.replace(PUBLISHED[name], choices=choices))
    return expect


@pytest.fixture
def cifar(store, expect):
    """A small CIFAR-10 archive in the store; returns its images and labels."""
    store.mkdir()
    x, y = images(360)
    cifar_binary(store / "cifar-10-binary.tar.gz", x, y)
    expect("cifar10", store)
    return x, y


def everything(data):
    """Train and defense images by content, with their labels."""
    return sorted((image.numpy().tobytes(), int(label)) for part in (data.train, data.defense)
                  for image, label in zip(part.images, part.labels, strict=True))


def pairs(x, y):
    return sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))


# ---- each set


def test_where_sets_lie_unless_told(monkeypatch, tmp_path):
    """Beside a repository in its data/, else in the user's folder."""
    monkeypatch.delenv("GRADPRUNE_DATA")
    assert paths.downloads_folder() == Path(__file__).resolve().parents[2] / "data" / "downloads"
    monkeypatch.setattr(paths, "_PACKAGE", tmp_path / "site-packages" / "gradprune")
    monkeypatch.setattr(paths.platformdirs, "user_data_dir", lambda name: str(tmp_path / "home" / name))
    assert paths.downloads_folder() == tmp_path / "home" / "gradprune"


def test_the_table_agrees_with_torchvision():
    binary, python = (choice[0] for choice in PUBLISHED["cifar10"].choices)
    assert (python.urls[0], python.md5) == (CIFAR10.url, CIFAR10.tgz_md5)
    assert binary.urls[0] == python.urls[0].replace("python", "binary")
    source = inspect.getsource(GTSRB.download)
    for remote in PUBLISHED["gtsrb"].choices[0]:
        address, _, name = remote.urls[0].rpartition("/")
        assert all(text in source for text in (address, name, remote.md5)), remote
    gzipped, raw = PUBLISHED["fashion_mnist"].choices
    assert [(remote.urls[0], remote.md5) for remote in gzipped] == [(FashionMNIST.mirrors[0] + name, md5)
                                                                    for name, md5 in FashionMNIST.resources]
    assert [remote.path + ".gz" for remote in raw] == [remote.path for remote in gzipped]
    assert [len(PUBLISHED[name].classes) for name in ("cifar10", "gtsrb", "fashion_mnist")] == [10, 43, 10]


def test_cifar10_from_its_archive(cifar, store):
    x, y = cifar
    data = load("cifar10")
    assert [len(part) for part in data] == [270, 30, 60]
    assert data.train.classes[3] == "cat"
    assert np.array_equal(data.test.images, x[300:]) and data.test.labels.tolist() == y[300:].tolist()
    assert everything(data) == pairs(x[:300], y[:300])
    assert everything(load("cifar10", seed=1)) == everything(data)
    assert not torch.equal(load("cifar10", seed=1).defense.images, data.defense.images)
    (store / "cifar-10-binary.tar.gz").unlink()
    assert torch.equal(load("cifar10").test.images, data.test.images), "converted once, then read from the .npz"


def test_cifar10_for_python_serves_as_well(cifar, store, expect):
    x, y = cifar
    (store / "cifar-10-binary.tar.gz").unlink()
    cifar_python(store / "cifar-10-python.tar.gz", x, y)
    expect("cifar10", store)
    data = load("cifar10")
    assert np.array_equal(data.test.images, x[300:]) and everything(data) == pairs(x[:300], y[:300])
    with tarfile.open(store / "cifar-10-python.tar.gz") as tar:
        tar.extractall(store, filter="data")

    class Theirs(CIFAR10):
        def _check_integrity(self):
            return True

        def _load_meta(self):
            self.classes = []

    theirs = Theirs(str(store), train=False)
    assert np.array_equal(theirs.data.transpose(0, 3, 1, 2), data.test.images)
    assert theirs.targets == data.test.labels.tolist()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("batch", [pickle.dumps({b"data": Evil(), b"labels": []}), b"cos\nsystem\n(S'mkdir pwned'\ntR.",
                                   b"cnumpy\nload\n(S'x'\ntR.", b"cbuiltins\neval\n(S'1'\ntR."])
def test_a_pickle_that_asks_for_code_is_refused(cifar, store, expect, batch, tmp_path):
    (store / "cifar-10-binary.tar.gz").unlink()
    cifar_python(store / "cifar-10-python.tar.gz", *cifar, batch=batch)
    expect("cifar10", store)
    refuses(r"cifar-10-python\.tar\.gz cannot be read \(it asks for "
            r"(posix\.mkdir|os\.system|numpy\.load|builtins\.eval)\)", load, "cifar10")
    assert not list(tmp_path.rglob("pwned"))


def test_archives_write_nothing_outside_and_follow_no_link(cifar, store, expect, tmp_path):
    link = tarfile.TarInfo("cifar-10-batches-bin/data_batch_1.bin")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    escape = tarfile.TarInfo("../../escaped.bin")
    escape.size = 4
    cifar_binary(store / "cifar-10-binary.tar.gz", *cifar, extra=[(link, None), (escape, io.BytesIO(b"evil"))])
    expect("cifar10", store)
    assert len(load("cifar10").test) == 60
    assert {path.name for path in tmp_path.rglob("*")} <= {"store", "cifar-10-binary.tar.gz", "cifar10.npz", ".cifar10.lock"}


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is absent: CIFAR-10's true images")
def test_true_cifar10_images_through_the_archive(store, expect):
    packed = np.load(SHARED / "data" / "cifar10_all_jpeg90.npz")
    header, content, offsets = packed["header"].tobytes(), packed["data"], packed["offsets"]
    chosen = [batch * 10000 + i for batch in range(6) for i in range(60)]
    x = np.stack([np.asarray(Image.open(io.BytesIO(header + content[offsets[i]:offsets[i + 1]].tobytes()))) for i in chosen])
    y = np.concatenate([packed["y_train"], packed["y_test"]])[chosen]
    store.mkdir()
    cifar_binary(store / "cifar-10-binary.tar.gz", x.transpose(0, 3, 1, 2), y)
    expect("cifar10", store)
    data = load("cifar10")
    assert np.array_equal(data.test.images.permute(0, 2, 3, 1), x[300:])
    assert [data.test.classes[label] for label in data.test.labels] == packed["classes"][y[300:]].tolist()


def test_gtsrb_from_its_zips_is_what_torchvision_reads(store, expect, tmp_path):
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (20 + i % 9, 30 + i % 7, 3)).astype(np.uint8) for i in range(140)]
    gtsrb_zips(store / "gtsrb", {label: pictures[label * 3:label * 3 + 3] for label in range(43)},
               [(i * 7 % 43, picture) for i, picture in enumerate(pictures[129:])])
    expect("gtsrb", store)
    data = load("gtsrb")
    assert [len(part) for part in data] == [86, 43, 11]
    assert data.test.classes[14] == "stop"
    for path in (store / "gtsrb").glob("*.zip"):
        with zipfile.ZipFile(path) as file:
            file.extractall(tmp_path / "tv" / "gtsrb")

    def theirs(split):
        found = [(np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)).transpose(2, 0, 1), label)
                 for image, label in GTSRB(tmp_path / "tv", split)]
        return np.stack([pixels for pixels, _ in found]), np.array([label for _, label in found])

    x, y = theirs("test")
    assert np.array_equal(data.test.images, x) and data.test.labels.tolist() == y.tolist()
    assert everything(data) == pairs(*theirs("train"))
    same = load(tmp_path / "tv" / "gtsrb")
    assert everything(same) == everything(data) and torch.equal(same.test.images, data.test.images), "as a folder too"


@pytest.mark.parametrize("pack", [True, False])
def test_fashion_mnist_gzipped_or_not(store, expect, pack):
    x, y = images(260, 28, 1)
    fashion_files(store / "FashionMNIST" / "raw", x[:, 0], y, 200, pack)
    expect("fashion_mnist", store)
    data = load("fashion_mnist")
    assert [len(part) for part in data] == [180, 20, 60]
    assert np.array_equal(data.test.images, x[200:]) and everything(data) == pairs(x[:200], y[:200])
    if not pack:
        theirs = FashionMNIST(store, train=False)
        assert torch.equal(theirs.data, data.test.images[:, 0]) and torch.equal(theirs.targets, data.test.labels)


@pytest.mark.skipif(not FASHION.is_dir(), reason=f"{FASHION} is absent: Debian's package dataset-fashion-mnist")
def test_the_true_fashion_mnist(store):
    (store / "FashionMNIST" / "raw").mkdir(parents=True)
    for path in FASHION.glob("*.gz"):  # gzipped anew by Debian, so their MD5 is another; their content is not
        (store / "FashionMNIST" / "raw" / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    data = load("fashion_mnist")
    assert [len(part) for part in data] == [54000, 6000, 10000]
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.classes[int(data.test.labels[0])] == "ankle boot"


def test_a_file_of_that_name_is_taken_as_it_is(store):
    store.mkdir()
    x, y = images(60)
    np.savez(store / "gtsrb.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert len(load("gtsrb").test) == 60 and state("gtsrb") == "ready"


# ---- absent, wrong, damaged


def test_absent_sets_say_what_to_do(store):
    refuses(r"^The data set cifar10 is not here; run `gradprune data get cifar10` \(170 MB\), or put by hand "
            r"cifar-10-binary\.tar\.gz from https://www\.cs\.toronto\.edu/~kriz/ into .*store\.$", load, "cifar10")
    refuses(r"GTSRB-Training_fixed\.zip, .*Images\.zip, .*GT\.zip from https://.*/ into .*store/gtsrb\.$", load,
            "gtsrb")
    told = refuses("The data set fashion_mnist is not here", load, "fashion_mnist")
    assert all(Path(remote.path).name in told for remote in PUBLISHED["fashion_mnist"].choices[0])
    assert not store.exists(), "asking must not leave folders behind"
    (store / "gtsrb").mkdir(parents=True)
    with zipfile.ZipFile(store / "gtsrb" / "GTSRB_Final_Test_GT.zip", "w"):
        pass
    refuses(r"GT\.zip is not the published file \(wrong MD5\); run `gradprune data get gtsrb`", load, "gtsrb")
    refuses(r"Unknown published data set 'cifar'; did you mean cifar10\?", get, "cifar")
    refuses(r"Unknown data set 'fashion-mnist'; did you mean fashion_mnist\?", load, "fashion-mnist")


def test_places_of_a_set_are_shared():
    """What the sentences say: one server's folder and one folder here for all files of a set."""
    for published_set in PUBLISHED.values():
        assert len({remote.urls[0].rpartition("/")[0] for remote in published_set.choices[0]}) == 1
        assert len({Path(remote.path).parent for remote in published_set.choices[0]}) == 1


def test_without_a_network_all_files_are_named_at_once(store, monkeypatch):
    def unreachable(remote, folder, progress):
        raise InputError(f"Downloading {remote.path} failed; {download.by_hand(remote, folder / remote.path)}.")

    monkeypatch.setattr(published, "fetch", unreachable)
    refuses(r"put the file from .* All that is still missing: GTSRB-Training_fixed\.zip, "
            r"GTSRB_Final_Test_Images\.zip, GTSRB_Final_Test_GT\.zip from https://.* into .*gtsrb\.$",
            get, "gtsrb", progress=False)
    refuses(r"at .*cifar-10-binary\.tar\.gz\.$", get, "cifar10", progress=False)


def test_a_half_archive_is_not_taken_for_a_whole_one(cifar, store):
    path = store / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:-1])
    refuses(r"binary\.tar\.gz is not the published file \(wrong MD5\); run `gradprune data get", load, "cifar10")
    assert not (store / "cifar10.npz").exists()


def test_a_damaged_npz_is_not_overwritten(cifar, store):
    (store / "cifar10.npz").write_text("somebody's own file")
    for call in (load, get):
        refuses(r"cifar10\.npz is not a readable \.npz file; .* move .*cifar10\.npz away and run `gradprune", call,
                "cifar10")
    assert (store / "cifar10.npz").read_text() == "somebody's own file"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_stops_leaves_no_half_file(cifar, store, monkeypatch, error):
    def half(path, **arrays):
        path.write_bytes(b"PK half an archive")
        raise error

    monkeypatch.setattr(np, "savez", half)
    with pytest.raises((InputError, KeyboardInterrupt)) as caught:
        load("cifar10")
    if isinstance(error, OSError):
        assert "cifar10.npz: No space left on device; make room (2 MB)" in str(caught.value)
    assert sorted(path.name for path in store.iterdir()) == [".cifar10.lock", "cifar-10-binary.tar.gz"]


@pytest.mark.parametrize("content", [idx(np.zeros((4, 28, 28)))[:-1], idx(np.zeros(4)), b""])
def test_bad_idx_files(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    refuses("is not a whole IDX file of 3 axes", archives.fashion_mnist, *[tmp_path / "x"] * 4)


def test_an_archive_without_a_batch(tmp_path):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        add(tar, "cifar-10-batches-bin/test_batch.bin", b"")
    refuses(r"lacks data_batch_1, data_batch_2, .*data_batch_5\.", archives.cifar10,
            tmp_path / "cifar-10-binary.tar.gz")


# ---- fetching


@pytest.fixture
def remote_cifar(cifar, store, server, expect):
    """The archive of `cifar` on a server, and no more in the store."""
    path = store / "cifar-10-binary.tar.gz"
    expect("cifar10", store, server.url("/"))
    server.content = {f"/{path.name}": path.read_bytes()}
    path.unlink()
    return server


def test_a_set_is_fetched_and_converted_once(remote_cifar, store):
    remote_cifar.faults = ["cut"]
    (store / f".cifar10-{socket.gethostname()}-99999999-x.npz").write_text("of a run that was killed while it wrote")
    assert state("cifar10") == "absent"
    path = get("cifar10", progress=False)
    assert path == store / "cifar10.npz" and state("cifar10") == "ready"
    assert get("cifar10", progress=False) == path and len(load("cifar10").test) == 60
    assert len(remote_cifar.asked) == 2
    assert sorted(path.name for path in store.iterdir()) == [".cifar10.lock", "cifar-10-binary.tar.gz", "cifar10.npz"]


def test_a_set_that_is_ready_may_lie_where_nothing_can_be_written(cifar, store, monkeypatch):
    load("cifar10")
    monkeypatch.setattr(published, "_alone", lambda *_: pytest.fail("a lock was asked for"))
    assert get("cifar10", progress=False) == store / "cifar10.npz"


def test_get_replaces_a_wrong_archive_and_takes_another_folder(remote_cifar, store, tmp_path, caplog):
    other = tmp_path / "other"
    other.mkdir()
    (other / "cifar-10-binary.tar.gz").write_bytes(b"half")
    assert get("cifar10", other, progress=False) == other / "cifar10.npz"
    assert "is not the published file" in caplog.text
    assert not (store / "cifar10.npz").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="forks, so that the processes start at once")
def test_two_processes_at_once_download_once(remote_cifar, store):
    context = multiprocessing.get_context("fork")
    begin = context.Event()

    def work():
        begin.wait(60)
        get("cifar10", progress=False)

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    begin.set()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(remote_cifar.asked) == 1
    assert len(load("cifar10").test) == 60


def test_a_second_process_says_that_it_waits(cifar, store, caplog):
    def hold():
        with published._alone(store, "cifar10"):
            pipe.send("held")
            time.sleep(0.5)

    if sys.platform != "linux":
        pytest.skip("forks")
    pipe, end = multiprocessing.Pipe()
    other = multiprocessing.get_context("fork").Process(target=hold)
    other.start()
    assert end.recv() == "held"
    with caplog.at_level(logging.WARNING):
        get("cifar10", progress=False)
    other.join()
    assert "Another process is fetching cifar10; waiting for it." in caplog.text


# ---- the command line, and models trained on such data


def test_list_get_and_check(remote_cifar, store, tmp_path):
    told = as_json("data", "list")
    assert told["folder"] == store.as_posix()
    assert [row["state"] for row in told["sets"].values()] == ["absent"] * 3
    assert "No published set is here" in run("data", "check").stdout
    result = run("data", "get", "cifar10", "--data-dir", store)
    assert result.exit_code == 0 and "cifar10 is ready" in result.stdout
    assert f"GRADPRUNE_DATA={store}" in result.stdout
    assert "ready" in run("data", "list").stdout
    facts = as_json("data", "check")["sets"]["cifar10"]
    assert (facts["train"], facts["defense"], facts["test"], facts["shape"]) == (270, 30, 60, [3, 32, 32])
    assert as_json("data", "list", "--data-dir", tmp_path / "else")["sets"]["cifar10"]["state"] == "absent"
    told = refused("data", "check", "cifar10", "--data-dir", tmp_path / "else")
    assert told.startswith("Error: The data set cifar10 is not here")


def test_list_reads_through_what_is_here(cifar, store):
    assert as_json("data", "list")["sets"]["cifar10"]["state"] == "downloaded"
    load("cifar10")
    whole = (store / "cifar10.npz").read_bytes()
    for damaged in (whole[:-100], whole[:9000] + bytes(50) + whole[9050:]):
        (store / "cifar10.npz").write_bytes(damaged)
        result = run("data", "list")
        assert "damaged" in result.stdout and "`gradprune data check cifar10` says which one" in result.stdout
        assert "cifar10.npz" in refused("data", "check", "cifar10")
    (store / "cifar10.npz").unlink()
    archive = store / "cifar-10-binary.tar.gz"
    archive.write_bytes(archive.read_bytes()[:-1])
    assert as_json("data", "list")["sets"]["cifar10"]["state"] == "damaged"


def test_nothing_is_cut_in_a_narrow_window(store, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = run("data", "list").stdout
    assert "\N{HORIZONTAL ELLIPSIS}" not in text and "what it is 60,000 photographs, 32x32, 10 classes" in text


def test_check_reads_arrays(tmp_path):
    pictures, labels = images(60)
    np.savez(tmp_path / "own.npz", x_train=pictures, y_train=labels, x_test=pictures, y_test=labels)
    facts = as_json("data", "check", tmp_path / "own.npz")["sets"][str(tmp_path / "own.npz")]
    assert facts["test"] == 60 and facts["train"] + facts["defense"] == 60


def test_check_names_the_pictures_that_cannot_be_read(tmp_path):
    write_pictures(tmp_path / "pets", images(8)[0], ["cat", "dog"] * 4)
    (tmp_path / "pets" / "dog" / "9.png").touch()
    result = run("data", "check", "pets")
    assert "4 images to train, 2 for the defender, 2 to test; 3x32x32; 2 classes: cat, dog." in result.stdout
    assert "cannot be read: dog/9.png: it is empty" in result.stdout
    assert as_json("data", "check", "pets")["sets"]["pets"]["skipped"] == ["dog/9.png: it is empty"]


def test_an_interrupted_get_says_what_is_kept(remote_cifar, monkeypatch):
    interrupt_call(monkeypatch, published, "fetch", 1)
    result = run("data", "get", "cifar10")
    assert result.exit_code == 130 and "what has arrived is kept, and the same command goes on" in result.stderr


@pytest.mark.parametrize("kind", ["name", "folder"])
def test_a_victim_of_such_data_loads_again(cifar, store, tmp_path, kind):
    if kind == "folder":
        write_pictures(tmp_path / "pictures", cifar[0], [f"class {label}" for label in cifar[1]])
    source, size = ("cifar10", None) if kind == "name" else ("pictures", 24)
    told = attack_and_save(tmp_path / "victim", "badnets", data=source, size=size, epochs=1, progress=False,
                           model={"name": "preact_resnet", "width": 4, "blocks": [1]})
    victim = load_victim(tmp_path / "victim")
    assert victim.card["data"]["name"] == source and victim.data.test.images.shape[-1] == (size or 32)
    assert victim.evaluate()._asdict() == pytest.approx(told["metrics"], abs=1e-3)
    assert victim.target_name == ("bird" if kind == "name" else "class 2")
    if kind == "folder":
        (tmp_path / "pictures" / "class 0").rename(tmp_path / "pictures" / "klass 0")
        refuses(r"classes of pictures have other names or another order than when .*victim was trained", load_victim,
                tmp_path / "victim")
        (tmp_path / "pictures").rename(tmp_path / "moved")
    else:
        (store / "cifar10.npz").unlink()
        (store / "cifar-10-binary.tar.gz").unlink()
    refuses("The data set cifar10 is not here" if kind == "name" else "data set 'pictures'", load_victim,
            tmp_path / "victim")


def test_a_folder_in_the_place_of_the_lock(tmp_path):
    (tmp_path / ".cifar10.lock").mkdir()
    refuses(r"\.cifar10\.lock cannot be locked: Is a directory\.", get, "cifar10", tmp_path, progress=False)
