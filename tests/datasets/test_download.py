"""Downloads from a local server that cuts, drips, lies and stays silent."""

import functools
import hashlib
import itertools
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import refuses
from local_server import CONTENT

from gradprune.datasets import download
from gradprune.datasets.download import Remote, fetch


@pytest.fixture
def remote(server):
    return Remote("sub/file.bin", (server.url(),), hashlib.md5(CONTENT).hexdigest(), len(CONTENT))


@pytest.fixture
def get(remote, tmp_path):
    """Fetches the file into the test's folder."""
    return functools.partial(fetch, remote, tmp_path, progress=False)


def files(folder: Path):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_downloaded_once(server, get, tmp_path):
    path = get()
    assert path == tmp_path / "sub" / "file.bin" and path.read_bytes() == CONTENT
    assert get() == path
    assert len(server.asked) == 1
    assert files(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("fault", ["cut", "silent", "no answer", 503, 429])
def test_a_fault_that_passes_is_got_over(server, get, fault):
    server.faults = [fault, fault]
    assert get().read_bytes() == CONTENT
    third = len(CONTENT) // 3
    assert [wanted for _, wanted in server.asked] == (
        [None, f"bytes={third}-", f"bytes={third + (len(CONTENT) - third) // 3}-"] if fault == "cut" else [None] * 3)


def test_an_interrupted_download_goes_on_where_it_stopped(server, get, tmp_path):
    server.faults = ["cut"] * 3
    refuses(r"connection was cut \(\d+ of 307200 bytes are kept\); run the same command", get)
    assert files(tmp_path) == ["file.bin.part"], "no half file under the whole one's name"
    kept = (tmp_path / "sub" / "file.bin.part").stat().st_size
    assert get().read_bytes() == CONTENT
    assert server.asked[-1] == ("/file.bin", f"bytes={kept}-")


def test_a_long_file_may_be_cut_often(server, get, monkeypatch):
    monkeypatch.setattr(download, "_PROGRESS", 1000)
    server.faults = ["cut"] * 10
    assert get().read_bytes() == CONTENT
    assert len(server.asked) == 11


@pytest.mark.parametrize(("part", "asked"), [
    (CONTENT, []),                                                      # stopped just before it got its name
    (CONTENT + b"more", [f"bytes={len(CONTENT) + 4}-", None]),          # of another file: thrown away
    (CONTENT[:1000], ["bytes=1000-"]),
])
def test_parts_that_an_earlier_run_left(server, get, tmp_path, part, asked):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.bin.part").write_bytes(part)
    assert get().read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == asked
    assert files(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("fault", ["no ranges", "no length"])
def test_servers_without_ranges_or_length(server, get, fault):
    server.faults = ["cut", fault]
    assert get().read_bytes() == CONTENT


def test_a_wrong_checksum_removes_the_file(server, get, tmp_path):
    server.content["/file.bin"] = CONTENT[:-1] + b"?"
    refuses(r"not the published file \(wrong MD5\) and was removed; run the same command "
            r"again, or put the file from http://127.* at .*sub/file\.bin\.$", get)
    assert files(tmp_path) == []


def test_a_file_that_is_cut_without_a_known_length_goes_on(server, get):
    server.faults = ["cut, no length"]
    assert get().read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={len(CONTENT) // 3}-"]


def test_the_second_server_is_asked_where_the_first_sends_another_file(server, remote, tmp_path):
    server.content["/wrong.bin"] = CONTENT[:-1] + b"?"
    both = replace(remote, urls=(server.url("/wrong.bin"), server.url()))
    assert fetch(both, tmp_path, progress=False).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/wrong.bin", "/file.bin"]


def test_a_file_of_another_content_is_replaced(server, get, tmp_path, caplog):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.bin").write_bytes(CONTENT[:5000])
    assert get().read_bytes() == CONTENT
    assert "is not the published file" in caplog.text


@pytest.mark.parametrize(("faults", "sentence"), [
    (["drip"] * 3, "the server sends less than 1000 bytes a second"),
    (["silent"] * 3, "the server is silent"),
    (["no answer"] * 3, "the server does not answer|the server is silent"),
    (["page"], "the server sent a web page instead of the file"),
    (["endless"], "the server sends far more than the file"),
    ([404], "the server answered 404 Not Found"),
    ([500] * 3, "the server answered 500"),
])
def test_every_failure_is_one_sentence_that_helps(server, get, remote, tmp_path, faults, sentence):
    server.faults = list(faults)
    message = refuses(sentence, get)
    assert len(server.asked) == len(faults)
    assert message.startswith("Downloading file.bin failed, 127.0.0.1")
    assert message.endswith(f"put the file from {remote.urls[0]} at {tmp_path}/sub/file.bin.")
    assert not (tmp_path / "sub" / "file.bin").exists()


def test_a_slow_server_is_kept_while_it_is_fast_enough(server, get, monkeypatch):
    """The speed of each stretch of time is measured anew: here every read is one."""
    clock = itertools.count(0, 31)
    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=time.sleep))
    monkeypatch.setattr(download, "SLOWEST", 0.001)
    assert get().read_bytes() == CONTENT
    assert len(server.asked) == 1 and next(clock) > 62


def test_a_part_that_cannot_be_written(server, get, tmp_path):
    (tmp_path / "sub" / "file.bin.part").mkdir(parents=True)
    refuses(r"Cannot write .*file\.bin\.part: Is a directory; .* GRADPRUNE_DATA\.$", get)
    assert len(server.asked) == 1, "asking again would not help"


def test_a_name_that_is_looked_up_forever(get, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *_, **__: over.wait(20))
    monkeypatch.setattr(download, "PATIENCE", 0.05)
    refuses("the server does not answer; run the same command", get)
    over.set()


def test_no_network(server, get, tmp_path):
    server.server_close()
    refuses(r"127\.0\.0\.1:\d+: Connection refused; run the same command again", get)
    refuses(r"nowhere\.invalid: .*; run the same command again", fetch,
            Remote("a", ("http://nowhere.invalid/a",), "0", 1), tmp_path, progress=False)


def test_the_second_address_serves_where_the_first_fails(server, remote, tmp_path):
    moved = Remote(remote.path, (server.url("/gone"), *remote.urls), remote.md5, remote.size)
    assert fetch(moved, tmp_path, progress=False).read_bytes() == CONTENT
    assert [path for path, _ in server.asked] == ["/gone", "/file.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which stands for a full disk")
def test_a_full_disk_is_one_sentence(get, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file.bin.part").symlink_to("/dev/full")
    refuses(r"Cannot write .*file\.bin\.part: No space left on device; make room", get)


def test_ctrl_c_keeps_what_has_arrived(server, get, tmp_path, monkeypatch):
    copy = download._copy

    def stopped(*arguments):
        copy(*arguments)
        raise KeyboardInterrupt

    server.faults = ["cut"]
    monkeypatch.setattr(download, "_copy", stopped)
    with pytest.raises(KeyboardInterrupt):
        get()
    assert (tmp_path / "sub" / "file.bin.part").read_bytes() == CONTENT[:len(CONTENT) // 3]


def test_a_folder_that_cannot_be_written(get, tmp_path):
    (tmp_path / "sub").write_text("a file where the folder should be")
    refuses("Cannot write to folder", get)
