"""Spoil files and read them, each format in a process of its own with limits on time, memory and what it may write.

    python tests/fuzz/run.py --count 2000          # what `make fuzz` does; 200 in the tests
    python tests/fuzz/run.py card --only 17        # one case again

Prints one JSON object a format. A file that does anything but give a right result or one InputError is a failure; it is
kept, and its path printed.
"""

import argparse
import contextlib
import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
os.environ["OMP_NUM_THREADS"] = "1"
SECONDS, PATIENCE, MEMORY, FILES = 5, 120, 1_000_000_000, 64_000_000  # CPU and wall seconds, bytes a file may take and write
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_scene: dict[str, Path] = {}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("formats", nargs="*")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    home = os.environ["HOME"] = tempfile.mkdtemp(prefix="fuzz-home-")
    import torch
    import torch._dynamo  # timm imports it, which makes a folder
    from bombs import BOMBS
    from formats import FORMATS
    torch.set_num_threads(1)
    failed = False
    for name in given.formats or [*FORMATS, "bombs"]:
        if name == "bombs":
            cases = list(range(len(BOMBS)))
        else:
            cases = [given.only] if given.only is not None else list(range(given.count))
        told = run(name, cases, given.seed)
        failed |= bool(told["failures"])
        print(json.dumps(told), flush=True)
    shutil.rmtree(home)
    sys.exit(failed)


def run(name: str, cases: list[int], seed: int) -> dict:
    """All cases of a format; a process that dies is a failure, and another goes on after it."""
    start, room = _children(), Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    told = {"format": name, "seed": seed, "files": len(cases), "right": 0, "refused": 0, "failures": [], "slowest": 0.0, "memory_mb": 0}
    left = list(cases)
    while left:
        log = room / "log"
        log.write_text("")
        if (child := os.fork()) == 0:
            try:
                _work(name, left, seed, room)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(3)
        _, status = os.waitpid(child, 0)
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        for line in lines:
            told[line["outcome"]] = told[line["outcome"]] + 1 if line["outcome"] != "failure" else 0
            told["slowest"] = max(told["slowest"], line["seconds"])
            told["memory_mb"] = max(told["memory_mb"], line["memory_mb"])
            if line["outcome"] == "failure":
                told["failures"].append({"case": line["case"], "why": line["why"], "kept": line["kept"]})
        left = left[len(lines):]
        if left and status:
            kept = _keep(room, name, left[0])
            words = [line for line in log.read_text().splitlines() if not line.startswith("{")]
            told["failures"].append({"case": left[0], "why": f"the process died with status {status}: " + " | ".join(words[:12]),
                                     "kept": kept})
            left = left[1:]
    told.pop("failure", None)
    shutil.rmtree(room, ignore_errors=True)
    return told | {"cpu_seconds": round(_children() - start, 1)}


def _children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _work(name: str, cases: list[int], seed: int, room: Path) -> None:
    """In the child: limits, then case after case; one line of the log for each."""
    from bombs import BOMBS
    from formats import FORMATS
    log = (room / "log").open("a")
    os.environ["GRADPRUNE_CACHE"] = str(room / "cache")
    faulthandler.enable(log)
    faulthandler.register(signal.SIGPROF, log, chain=True)  # what it was doing when its time was up; then it dies
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILES * 40 if name == "bombs" else FILES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    valid, case_folder = room / "valid", room / "case"
    _scene.update(room=room)
    if name != "bombs" and not valid.exists():
        valid.mkdir()
        FORMATS[name].make(valid)
    (room / "canary").write_text("untouched")
    _watch()
    if name != "bombs":  # what is imported on first use is no part of a case
        shutil.copytree(valid, case_folder, dirs_exist_ok=True)
        os.chdir(case_folder)
        FORMATS[name].check(case_folder)
    for case in cases:
        os.chdir(room)
        shutil.rmtree(case_folder, ignore_errors=True)
        rng = Random(f"{name} {seed} {case}")
        if name == "bombs":
            case_folder.mkdir()
            check = BOMBS[case](case_folder)
        else:
            shutil.copytree(valid, case_folder)
            if case:  # case 0 is the valid file
                FORMATS[name].spoil(case_folder, rng)
            check = FORMATS[name].check
        os.chdir(case_folder)
        line = _judge(check, case_folder, valid_file=case == 0 and name != "bombs")
        if line["outcome"] == "failure":
            line["kept"] = _keep(room, name, case)
        print(json.dumps({"case": case, **line}), file=log, flush=True)
    os._exit(0)


def _judge(check, folder: Path, valid_file: bool) -> dict:
    """Read one spoiled file within the limits and say what came of it."""
    from gradprune.base.errors import InputError
    base, rest = _memory("VmData"), _memory("VmRSS")
    resource.setrlimit(resource.RLIMIT_DATA, (base + 2 * MEMORY, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    start, why, outcome = time.process_time(), "", "right"
    _scene["folder"] = folder
    try:
        check(folder)
    except InputError as error:
        outcome, why = "refused", _bad_sentence(error)
        if valid_file:
            why = f"the valid file was refused: {error}"
    except BaseException as error:
        why = "".join(traceback.format_exception(error))[-1500:]
    finally:
        _scene.pop("folder")
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    taken = _memory("VmHWM") - rest
    if taken > MEMORY:
        why = why or f"it took {taken / 1e6:.0f} MB"
    if not why and _scene.get("broken"):
        why = f"it did what no file may: {_scene.pop('broken')}"
    if not why and ((folder / "ran_code").exists() or (folder.parent / "canary").read_text() != "untouched"):
        why = "code was run, or a file outside of the folder was changed"
    return {"outcome": "failure" if why else outcome, "why": why, "seconds": round(time.process_time() - start, 2),
            "memory_mb": round(taken / 1e6)}


def _bad_sentence(error: Exception) -> str:
    """What is wrong with a refusal, if anything: it must be short, one line, and not hide that memory ran out."""
    text = str(error)
    chain, one = [], error
    while one is not None and len(chain) < 9:
        chain.append(f"{type(one).__name__} {one}")
        one = one.__cause__ or one.__context__
    if not text.strip() or len(text) > 1100 or not text.isprintable():
        return f"no sentence: {text[:300]!r}"
    if any("MemoryError" in link or "allocate memory" in link for link in chain):
        return f"memory ran out: {chain}"[:1500]
    return ""


def _watch() -> None:
    """Note writes outside of the case's folder and the cache, programs started, and connections, wherever they come from."""
    def allowed(path) -> bool:
        place = os.path.realpath(os.fsdecode(path)) if isinstance(path, str | bytes | os.PathLike) else "/dev/null"
        return place == "/dev/null" or any(place.startswith(str(_scene["room"] / part)) for part in ("case", "cache", "log"))

    def look(event: str, args: tuple) -> None:
        if "folder" not in _scene:
            return
        bad = None
        if event == "open" and isinstance(args[2], int) and args[2] & WRITES and not isinstance(args[0], int) and not allowed(args[0]):
            bad = f"open {args[0]!r} for writing"
        elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.chmod", "os.truncate", "shutil.rmtree"):
            places = [arg for arg in args if isinstance(arg, str | bytes | os.PathLike)]
            bad = None if all(map(allowed, places)) else f"{event} {places}"
        elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"):
            bad = f"{event} {args[:2]}"
        if bad:
            _scene.setdefault("broken", bad)  # type: ignore[arg-type]

    sys.addaudithook(look)


def _memory(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _keep(room: Path, name: str, case: int) -> str:
    """Copy the files of a failure to where they stay."""
    kept = HERE.parents[1] / "out" / "fuzz" / f"{name}-{case}"
    shutil.rmtree(kept, ignore_errors=True)
    with contextlib.suppress(shutil.Error):  # a pipe cannot be copied; the rest is
        shutil.copytree(room / "case", kept, symlinks=True)
    return str(kept)


if __name__ == "__main__":
    main()
