"""Files that are small, or lie about their size, and would take all memory or hours. Each must be refused.

A bomb writes itself into an empty folder and returns what reads it.
"""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from formats import (
    _check_bench,
    _check_folder,
    _check_npz,
    _check_picture,
    _check_victim,
    _checkpoint,
    _make_bench,
    _npz,
    _sealed,
)

from gradprune.datasets import archives, published
from gradprune.models import build, load_weights
from gradprune.models.checkpoints import load_checkpoint
from gradprune.victims.backdoorbench import read_attack_result

Check = Callable[[Path], Any]


def _header(kind: str, shape: tuple[int, ...]) -> bytes:
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def _array(name: str, kind: str, shape: tuple[int, ...], zeros: int) -> Callable[[Path], Check]:
    def bomb(folder: Path) -> Check:
        _npz(folder / "old.npz")
        with zipfile.ZipFile(folder / "old.npz") as old, zipfile.ZipFile(folder / "data.npz", "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.namelist():
                if member != f"{name}.npy":
                    new.writestr(member, old.read(member))
            with new.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(_header(kind, shape))
                for _ in range(zeros // 2**20):
                    file.write(bytes(2**20))
        return _check_npz
    return bomb


def _card(change: Callable[[dict], Any]) -> Callable[[Path], Check]:
    def bomb(folder: Path) -> Check:
        _checkpoint(folder, "badnets")
        card = json.loads((folder / "model.json").read_text())
        change(card)
        (folder / "model.json").write_text(json.dumps(card))
        return _check_victim
    return bomb


def _model(**settings: Any) -> Callable[[Path], Check]:
    return _card(lambda card: card["model"].update(settings))


def _trigger(name: str, /, **settings: Any) -> Callable[[Path], Check]:
    return _card(lambda card: card["attack"].update(trigger=name, settings=settings))


def deep_card(folder: Path) -> Check:
    _checkpoint(folder)
    (folder / "model.json").write_text("[" * 100_000 + "]" * 100_000)
    return _check_victim


def sparse(name: str, check: Check, make: Callable[[Path], None] | None = None) -> Callable[[Path], Check]:
    """A file of 2 GB without content on the disk."""
    def bomb(folder: Path) -> Check:
        if make:
            make(folder)
        with (folder / name).open("ab") as file:
            file.truncate(2_000_000_000)
        return check
    return bomb


def header_of_a_gigabyte(folder: Path) -> Check:
    _checkpoint(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 10**9))
    _sealed(folder)
    return lambda folder: load_checkpoint(folder / "model")


def wide_field(folder: Path) -> Check:
    """A row with a right checksum whose only fault is a cell of 20 MB; and the row before it."""
    _make_bench(folder)
    line = '"' + "x" * 20_000_000 + '"'
    (folder / "cells.csv").write_text(f"head\n{line},{zlib.crc32(line.encode()):08x}\n")
    return _check_bench


def long_number(folder: Path) -> Check:
    _make_bench(folder)
    lines = (folder / "cells.csv").read_text().splitlines()
    cells = lines[1].split(",")[:-1]
    cells[2] = "9" * 60_000
    line = ",".join(cells)
    (folder / "cells.csv").write_text(f"{lines[0]}\n{line},{zlib.crc32(line.encode()):08x}\n")
    return _check_bench


def _png(width: int, height: int, real: bool) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    pixels = zlib.compress(bytes(1 + (width + 7) // 8) * (height if real else 1), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture(width: int, height: int, check: Check) -> Callable[[Path], Check]:
    def bomb(folder: Path) -> Check:
        if check is _check_picture:
            (folder / "mark.png").write_bytes(_png(width, height, width * height < 10**8))
        else:
            for name in ("a", "b"):
                (folder / name).mkdir()
                (folder / name / "x.png").write_bytes(_png(width, height, width * height < 10**8))
        return check
    return bomb


def _pickle(body: bytes, name: str = "zip.pth", check: Check | None = None) -> Callable[[Path], Check]:
    """A file of torch's layout with this pickle."""
    def bomb(folder: Path) -> Check:
        with zipfile.ZipFile(folder / name, "w") as file:
            for member, data in (("data.pkl", body), ("byteorder", b"little"), ("version", b"3\n"), ("data/0", bytes(16))):
                file.writestr(f"x/{member}", data)
        return check or (lambda folder: load_weights(build("preact_resnet", 3, width=2), folder / name))
    return bomb


def _twice(depth: int) -> bytes:
    """A tuple of twice the tuple before, `depth` times."""
    return b"K\x01K\x02\x86q\x01" + b"".join(b"h" + bytes([1 + i]) + b"h" + bytes([1 + i]) + b"\x86q" + bytes([2 + i]) for i in range(depth))


# Pickled calls of what torch's own loader allows, with a number that the file has no bytes for.
_MANY = b"\x8a\x05" + (10**10).to_bytes(5, "little")
_STORAGE = b"(X\x07\0\0\0storagectorch\n%sStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
_NONE = b"ccollections\nOrderedDict\n)R"


def _call(name: bytes, arguments: bytes, how: bytes = b"R") -> Callable[[Path], Check]:
    """A dict with a value that is made by a call; how: REDUCE, or NEWOBJ and what follows it."""
    return _pickle(b"\x80\x02}X\x01\0\0\0ac" + name + arguments + how + b"s.")


def _tensor(offset: bytes, size: bytes, stride: bytes) -> Callable[[Path], Check]:
    """A tensor that says where in its storage of four numbers it lies."""
    return _call(b"torch._utils\n_rebuild_tensor_v2\n", b"(" + _STORAGE % b"Float" + offset + size + stride + b"\x89" + _NONE + b"t")


def old_offset(folder: Path) -> Check:
    torch.save({"a": torch.zeros(4)}, folder / "old.pt", _use_new_zipfile_serialization=False)
    data = (folder / "old.pt").read_bytes()
    offset = data.index(b"Q", data.index(b"FloatStorage")) + 1
    (folder / "old.pt").write_bytes(data[:offset] + _MANY + data[offset + 2:])
    return lambda folder: load_weights(build("preact_resnet", 3, width=2), folder / "old.pt")


CALLS = [
    _call(b"__builtin__\nbytearray\n", _MANY + b"\x85"), _call(b"torch\nFloatTensor\n", _MANY + b"\x85"),
    _call(b"torch\nTensor\n", _MANY + b"\x85", b"\x81"), _call(b"torch.storage\nUntypedStorage\n", _MANY + b"\x85"),
    _tensor(_MANY, b"K\x04\x85", b"K\x01\x85"), _tensor(b"K\0", _MANY + b"\x85", b"K\x01\x85"),
    _tensor(b"K\0", b"M\xff\xffM\xff\xff\x86", b"M\xff\xffK\x01\x86"), old_offset,
    _call(b"torch\nTensor\n", b")", b"\x81(" + _STORAGE % b"Float" + _MANY + b"K\x04\x85K\x01\x85tb"),
    _call(b"torch._utils\n_rebuild_qtensor\n", b"(" + (_STORAGE % b"QUInt8").replace(b"K\x04tQ", b"K\x10tQ") + b"K\0" + _MANY + b"\x85K\x01\x85ctorch\nper_tensor_affine\n"
          b"G?\xf0\0\0\0\0\0\0K\0\x87\x89" + _NONE + b"t"),
    _call(b"numpy._core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\n" + _MANY + b"\x85X\x01\0\0\0b\x87"),
    _call(b"numpy\nndarray\n", _MANY + b"\x85\x85", b"\x81"),
    _call(b"numpy._core.multiarray\nscalar\n", b"cnumpy\ndtype\nX\x0b\0\0\0V2000000000\x85R\x85"),
    _call(b"numpy._core.multiarray\n_reconstruct\n", b"cnumpy\nndarray\nK\0\x85X\x01\0\0\0b\x87",
          b"R(K\x01J\x00\x00\x00\x0c\x85cnumpy\ndtype\nX\x02\0\0\0O8\x85R\x89]tb")]


def old_format(folder: Path) -> Check:
    (folder / "old.pt").write_bytes(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02}" + _twice(60) + b"K\x01s.\x80\x02].")
    return lambda folder: load_weights(build("preact_resnet", 3, width=2), folder / "old.pt")


def packed_weights(folder: Path) -> Check:
    torch.save({"a": torch.zeros(2**20)}, folder / "big.pt")
    with zipfile.ZipFile(folder / "big.pt") as old, zipfile.ZipFile(folder / "zip.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    return lambda folder: load_weights(build("preact_resnet", 3, width=2), folder / "zip.pth")


def _attack(**changes: Any) -> Callable[[Path], Check]:
    def bomb(folder: Path) -> Check:
        from formats import _attack_result
        torch.save({**_attack_result(folder), **changes}, folder / "attack_result.pt")
        return lambda folder: read_attack_result(folder / "attack_result.pt")
    return bomb


def _nested(depth: int) -> list:
    row: list = [0]
    for _ in range(depth):
        row = [row, row]
    return row


def idx_bomb(folder: Path) -> Check:
    (folder / "x.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + np.array([2**31, 28, 28], ">u4").tobytes() + bytes(2**27), 1))
    return lambda folder: published._convert("fashion_mnist", [folder / "x.gz"] * 4, folder / "fashion_mnist.npz")


def tar_bomb(folder: Path) -> Check:
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as file:
        member = tarfile.TarInfo("x/big")
        member.size = 200 * 2**20
        file.addfile(member, _Zeros())
    return lambda folder: published._convert("cifar10", [folder / "cifar-10-binary.tar.gz"], folder / "cifar10.npz")


class _Zeros(io.RawIOBase):
    def read(self, size: int = -1) -> bytes:
        return bytes(size)


def labels_bomb(folder: Path) -> Check:
    with zipfile.ZipFile(folder / "labels.zip", "w", zipfile.ZIP_DEFLATED) as file, file.open("GT-final_test.csv", "w", force_zip64=True) as member:
        for _ in range(200):
            member.write(bytes(2**20))
    return lambda folder: published._convert("gtsrb", [folder / "labels.zip"] * 3, folder / "gtsrb.npz")


def memo_bomb(folder: Path) -> Check:
    """A place far out in the memo of a pickle, for which the unpickler would make room."""
    content = b"\x80\x02}r\xff\xff\xff\x7f."
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as file:
        for name in (name for names in archives._BATCHES.values() for name in names):
            member = tarfile.TarInfo(f"x/{name}")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return lambda folder: published._convert("cifar10", [folder / "cifar-10-python.tar.gz"], folder / "cifar10.npz")


def pipe_as_table(folder: Path) -> Check:
    _make_bench(folder)
    (folder / "cells.csv").unlink()
    os.mkfifo(folder / "cells.csv")
    return _check_bench


BOMBS: list[Callable[[Path], Check]] = [
    _array("x_train", "|u1", (10**12,), 0), _array("x_train", "|u1", (300 * 2**20 // 192, 3, 8, 8), 300 * 2**20),
    _array("classes", "<U0", (10**9,), 0), _array("classes", "<U100000000", (3,), 0), _array("y_train", "<i8", (2**61, 8), 0),
    _model(width=10**6), _model(blocks=[100_000]), _model(blocks=[1] * 70), _model(num_classes=10**9), _model(num_classes=10**14),
    _model(name="timm/vit_giant_patch14_dinov2"), _model(name="timm/hf-hub:a/b"), _model(name="timm/local-dir:."),
    _model(name="timm/resnet10t", checkpoint_path="evil.pth"), _model(name="os:system"), _model(name="small_vgg", size=10**7),
    _trigger("badnets", size=10**9), _trigger("wanet", grid=10**6), _trigger("low_frequency", cutoff=10**9),
    _trigger("input_aware", width=10**6), _trigger("trojannn", size=10**9), _trigger("picture", size=[10**5, 10**5]),
    _trigger("badnets", position=[1.5, 2]), _trigger("badnets", name="x"), _trigger("sig", frequency=10**400), deep_card,
    sparse("model.json", _check_victim, _checkpoint), sparse("cells.csv", _check_bench, _make_bench),
    sparse("bench.json", _check_bench, _make_bench), header_of_a_gigabyte, wide_field, long_number,
    picture(30_000, 30_000, _check_folder), picture(30_000, 30_000, _check_picture), picture(8000, 7900, _check_picture),
    _pickle(b"\x80\x02}" + _twice(60) + b"K\x01s."), _pickle(b"\x80\x02}q\x00X\x03\0\0\0netq\x01h\x00s."), old_format,
    _pickle(b"\x80\x02}q\x00" + b"(" * 10**6 + b"."), packed_weights,
    _attack(num_classes=10**9), _attack(model={"conv1.weight": torch.zeros(1).expand(10**6, 3, 3, 3)}),
    _attack(bd_train={"poison_indicator": torch.zeros(1, dtype=torch.bool).expand(10**12)}),
    _attack(bd_train={"poison_indicator": _nested(60)}), _attack(clean_data=_nested(60)), _attack(bd_test={"y": torch.zeros(1).expand(10**11)}),
    idx_bomb, tar_bomb, labels_bomb, memo_bomb, pipe_as_table, *CALLS]
