"""Ways to spoil a file: blind ones for any bytes, and ones that know the format, so that its outer checks still pass."""

import io
import json
import struct
import zipfile
import zlib
from random import Random
from typing import Any

NUMBERS = [0, -1, 1, 2**31, 2**63, -2**63, 10**12, 10**30, 1e308, float("nan"), float("inf"), -0.5, True]
TEXTS = ["", "x" * 5000, "../../x", "/etc/passwd", "~nobody/x", "a\0b", "\ud800", "\x1b]0;x\x07", "<script>alert(1)</script>",
         "$x^$", "all_to_all", "os:system", "timm/hf-hub:a/b", "timm/vit_giant_patch14_dinov2", "9" * 5000, "=1+1", "\r\n\r\n"]
HOSTILE = b"cposix\nsystem\n(X\x0e\x00\x00\x00touch ran_codetR"  # leaves a file where a pickle runs code


def blind(rng: Random, data: bytes) -> bytes:
    """Flip, cut, insert, swap, repeat, or write a number over a length field."""
    if not data:
        return rng.randbytes(9)
    data, place = bytearray(data), rng.randrange(len(data))
    kind = rng.randrange(7)
    if kind == 0:
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place:place] = rng.choice((rng.randbytes(rng.randrange(1, 40)), b"\0" * 200, b"\xff" * 8))
    elif kind == 3:
        del data[place:place + rng.randrange(1, 200)]
    elif kind == 4:
        other, length = rng.randrange(len(data)), rng.randrange(1, 60)
        data[place:place + length], data[other:other + length] = data[other:other + length], data[place:place + length]
    elif kind == 5:
        data += data[place:]
    else:
        form = rng.choice(("<B", "<H", "<I", ">I", "<Q", ">Q"))
        top = 256 ** struct.calcsize(form) - 1
        number = struct.pack(form, rng.choice((0, 1, top, top // 2, min(top, 10**12), rng.randint(0, top))))
        data[place:place + len(number)] = number
    return bytes(data)


def value(rng: Random) -> Any:
    """Something that has no business where it stands."""
    return rng.choice([None, [], {}, [[]], [1.5, "a"], {"a": [1]}, [0] * 3000, rng.choice(NUMBERS), rng.choice(TEXTS),
                       rng.choice(NUMBERS), rng.choice(TEXTS)])


def in_json(rng: Random, content: Any) -> Any:
    """A JSON value with one or two places replaced, dropped, doubled or nested."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.choice((1, 1, 2))):
        places: list[tuple[Any, Any]] = []
        _walk(content, places)
        if places:
            holder, key = rng.choice(places)
            kind = rng.randrange(6)
            if kind == 0:
                del holder[key]
            elif kind == 1 and isinstance(holder, dict):
                holder[rng.choice(("code", "seed", "checkpoint_path", "sizes", "name", *TEXTS))] = value(rng)
            elif kind == 2:
                holder[key] = [holder[key]]
            elif kind == 3 and isinstance(holder[key], int | float):
                holder[key] *= rng.choice((-1, 10, 1000, 10**6, 0.5))
            else:
                holder[key] = value(rng)
    return content


def _walk(content: Any, places: list[tuple[Any, Any]]) -> None:
    keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    for key in keys:
        places.append((content, key))
        _walk(content[key], places)


def json_bytes(rng: Random, content: Any) -> bytes:
    """The same as a file; now and then spoiled as bytes."""
    text = json.dumps(content if rng.random() < 0.1 else in_json(rng, content)).encode()
    return blind(rng, text) if rng.random() < 0.2 else text


def in_zip(rng: Random, data: bytes, inner: Any) -> bytes:
    """A zip with one member changed by `inner(rng, name, bytes)`, renamed, doubled, left out or packed; sums are right."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(info.filename, old.read(info)) for info in old.infolist()]
    chosen, kind, out = rng.randrange(len(members)), rng.randrange(10), io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((0, 0, 0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as new:
        for place, (name, content) in enumerate(members):
            if place != chosen:
                new.writestr(name, content)
            elif kind == 0:
                new.writestr(rng.choice(("../../x", "/tmp/x", "x" * 300, name.replace("/", "\\"), name + "/")), content)
            elif kind == 1:
                new.writestr(name, content)
                new.writestr(name + ".x", content)
            elif kind == 2:
                new.writestr(name, b"\0" * rng.choice((10**6, 10**7)))
            elif kind > 3:
                new.writestr(name, inner(rng, name, content))
    return blind(rng, out.getvalue()) if rng.random() < 0.1 else out.getvalue()


def in_npy(rng: Random, name: str, data: bytes) -> bytes:
    """An array with another header, or other bytes."""
    if rng.random() < 0.4 or data[:6] != b"\x93NUMPY":
        return blind(rng, data)
    start = 10 + struct.unpack("<H", data[8:10])[0]
    head = {"descr": rng.choice(("|u1", "<i8", ">i8", "<U0", "<U9", "<U100000000", "|O", "|V0", "<f8", "<c16", "|S1", "<m8", 3)),
            "fortran_order": rng.choice((True, False, None)),
            "shape": rng.choice(((10**12,), (2**40, 2**40), (4, 3, 8, 8), (4,), (), (-1,), (0,), (4, 0, 8, 8), (10**7,), "a"))}
    if rng.random() < 0.6:
        old = data[10:start].decode("latin-1")
        text = old.replace(old[old.index("'shape'"):old.rindex("}")], f"'shape': {head['shape']}, ") if rng.random() < 0.5 else (
            old.replace(old[old.index(":") + 1:old.index(",")], repr(head["descr"])))
    else:
        text = repr(head)
    text = text.rstrip() + "\n"
    return data[:8] + struct.pack("<H", len(text)) + text.encode("latin-1") + data[start:]


def in_safetensors(rng: Random, data: bytes) -> bytes:
    """A header with other names, types, shapes and offsets, or another length of it."""
    length = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.4:
        return blind(rng, data)
    head = json.loads(data[8:8 + length])
    name = rng.choice([key for key in head if key != "__metadata__"])
    entry, kind = head[name], rng.randrange(6)
    if kind == 0:
        entry["dtype"] = rng.choice(("BF16", "F8_E4M3", "F8_E8M0", "F4", "C64", "BOOL", "U64", "I8", "F64", "X", 1))
    elif kind == 1:
        entry["shape"] = rng.choice(([], [0], [10**12], [2**62, 4], [-1], [1.5], ["a"], [1] * 3000, entry["shape"][::-1]))
    elif kind == 2:
        entry["data_offsets"] = rng.choice(([0, 10**12], [0, 0], [8, 4], [-4, 4], [2**63, 2**64], [0], "a", [0, len(data)]))
    elif kind == 3:
        head[rng.choice(TEXTS)] = head.pop(name)
    elif kind == 4:
        del head[name]
    else:
        head = in_json(rng, head)
    text = json.dumps(head).encode()
    return struct.pack("<Q", rng.choice((len(text), len(text), len(text), len(text) + 8, 10**9, 2**63))) + text + data[8 + length:]


def in_pickle(rng: Random, name: str, data: bytes) -> bytes:
    """A pickle with other small numbers, other globals, more operations, or code in it."""
    kind = rng.randrange(6)
    if not name.endswith("pkl") or kind == 0:
        return blind(rng, data)
    if kind == 1:
        place = data.find(b"K", rng.randrange(len(data)))
        return data[:place] + b"J" + struct.pack("<i", rng.choice((-1, 0, 2**31 - 1, 10**6))) + data[place + 2:]
    if kind == 2:
        old = rng.choice((b"torch._utils\n_rebuild_tensor_v2", b"torch\nFloatStorage", b"collections\nOrderedDict"))
        new = rng.choice((b"torch._utils\n_rebuild_sparse_tensor", b"torch._utils\n_rebuild_qtensor", b"torch\nsystem",
                          b"torch._utils\n_rebuild_meta_tensor_no_storage", b"posix\nsystem", b"builtins\neval",
                          b"torch\nDoubleStorage", b"torch\nQInt8Storage", b"torch\nBoolStorage", b"torch\ndevice"))
        return data.replace(old, new, rng.choice((-1, 1)))
    place = rng.randrange(2, len(data))
    more = rng.choice((HOSTILE, b"h\x00", b"0", b"(", b"t", b"r\xff\xff\xff\x7f", b"}", b"h\x01h\x01\x86", b"K\x01\x85", b"s", b"b"))
    return data[:place] + more * rng.choice((1, 1, 30)) + data[place:]


def in_csv(rng: Random, data: bytes, check: bool) -> bytes:
    """A table with other cells; with `check`, lines get the checksum that fits."""
    lines = data.decode().splitlines()
    for _ in range(rng.choice((1, 2, 6))):
        row = rng.randrange(len(lines))
        cells = lines[row].split(";" if ";" in lines[row] else ",")
        if check:
            cells.pop()
        place, kind = rng.randrange(len(cells)), rng.randrange(8)
        if kind == 0:
            del cells[place]
        elif kind == 1:
            cells.insert(place, "1")
        elif kind == 2:
            cells[place] = '"' + rng.choice(("", 'x"y', "a,b", "x" * 200_000))
        else:
            new = rng.choice((*map(str, NUMBERS), *TEXTS, "-", "٣", "1_0", " 5", "0x10", "1e5"))
            cells[place] = new if rng.random() < 0.5 else '"' + new.replace('"', '""') + '"'
        line = (";" if ";" in lines[row] else ",").join(cells)
        lines[row] = f"{line},{zlib.crc32(line.encode('utf-8', 'replace')):08x}" if check else line
        if rng.random() < 0.2:
            lines.insert(rng.randrange(len(lines)), lines[row])
    text = "\n".join(lines).encode("utf-8", "replace") + b"\n"
    return blind(rng, text) if rng.random() < 0.2 else text
