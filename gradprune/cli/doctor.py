"""Check the machine and say what to do about each problem: `gradprune doctor`.

It uses plain printing and late imports, so that it still runs where packages are missing or broken.
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

NEEDED_MEMORY = 2.0  # GB free: the largest lesson takes 1.5
NEEDED_DISK = 0.5    # GB free for the cache: rendered signs take 0.03, downloads the rest
INSTALL = 'in the repository\'s folder, run: python -m pip install -e ".[notebooks]"'


@dataclass(frozen=True)
class Check:
    """One line of the report. ok: True, "warn" (usable, with limits) or False (must be fixed).

    advice: what to do unless ok is True; the report then leaves it out.
    """

    name: str
    ok: bool | Literal["warn"]
    found: str
    advice: str = ""


def checks() -> Iterator[Check]:
    """Run every check, one by one; an exception in one becomes a failed check."""
    for name, run in CHECKS.items():
        try:
            check = run()
            yield replace(check, advice="") if check.ok is True else check
        except Exception as error:  # whatever is broken is to be reported
            yield Check(name, False, f"{type(error).__name__}: {' '.join(str(error).split())}",
                        f"In a fresh environment, {INSTALL}")


def report(as_json: bool = False) -> int:
    """Print the checks as they are done; returns the exit code, 1 if one failed and 0 otherwise."""
    done = []
    for check in checks():
        done.append(check)
        print(_line(check, colour=not as_json and sys.stdout.isatty() and "NO_COLOR" not in os.environ),
              file=sys.stderr if as_json else sys.stdout, flush=True)
    failed = [check.name for check in done if check.ok is False]
    verdict = f"To be fixed: {', '.join(failed)}." if failed else "This machine is ready."
    print(verdict, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [asdict(check) for check in done]}))
    return 1 if failed else 0


def _line(check: Check, colour: bool) -> str:
    word, code = {True: ("ok  ", 32), "warn": ("warn", 33), False: ("FAIL", 31)}[check.ok]
    word = f"\033[{code}m{word}\033[0m" if colour else word
    return f"{word}  {check.name:<12} {check.found}" + (f"\n      -> {check.advice}" if check.advice else "")


# ---- versions


def python() -> Check:
    """Python is 3.11 or newer."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Check("Python", sys.version_info >= (3, 11), found, "Make a new environment with Python 3.11 or newer.")


def packages() -> Check:
    """The packages that gradprune needs are installed and recent enough."""
    wrong, found = _compare(extra="")
    return Check("packages", not wrong, "; ".join(wrong) or found, f"To install them, {INSTALL}")


def notebooks() -> Check:
    """The lessons' further packages, the extra `notebooks`, are installed and recent enough."""
    wrong, found = _compare(extra="notebooks")
    return Check("notebooks", "warn" if wrong else True, "; ".join(wrong) or found, f"To open the lessons, {INSTALL}")


def _compare(extra: str) -> tuple[list[str], str]:
    """What is wrong with the packages of an extra ("" for the base), and the versions found."""
    wrong, found = [], []
    for line in metadata.requires("gradprune") or []:
        match = re.match(r"([\w.-]+)\s*>=\s*([\d.]+)(?:.*extra\s*==\s*['\"](\w+))?", line)
        if match is None or (match[3] or "") != extra:
            continue
        name, least = match[1], match[2]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        found.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            wrong.append(f"{name} is {version}, needed is {least}")
    return wrong, ", ".join(found)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def torch_pair() -> Check:
    """Torch and torchvision were built for each other: a wrong pair fails at torchvision's first operator."""
    advice = "Install a pair that fits: python -m pip install --upgrade --force-reinstall torch torchvision"
    try:
        import torch
        from torchvision.ops import nms
        kept = nms(torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2]]), torch.tensor([0.9, 0.8]), 0.5).tolist()
    except Exception as error:
        return Check("torch pair", False, f"torch and torchvision do not work together: {error}", advice)
    good = kept == [0]
    return Check("torch pair", good, "torch and torchvision agree" if good else f"nms kept {kept}, not [0]", advice)


# ---- machine


def cores() -> Check:
    """The number of processor cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cores", True, f"{count}" + (" (training may take twice as long)" if count == 1 else ""))


def memory() -> Check:
    """Free memory, within the limit of a container if there is one."""
    import psutil

    free = min(psutil.virtual_memory().available, _container_limit()) / 1e9
    return Check("memory", free >= NEEDED_MEMORY or "warn", f"{free:.1f} GB free",
                 f"Close other programs: lessons take up to {NEEDED_MEMORY:.0f} GB.")


def _container_limit(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes left of a Linux container's limit, infinite if there is none; psutil reports those of the host."""
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # no such limit, or the word "max"
        return float("inf")


def cache() -> Check:
    """The cache folder is writable and has room."""
    from gradprune.base.errors import InputError
    from gradprune.base.paths import cache_folder, output_folder

    folder = cache_folder()
    try:
        output_folder(folder)
    except InputError as error:
        return Check("cache", False, str(error), "Set the environment variable GRADPRUNE_CACHE to a folder of yours.")
    free = shutil.disk_usage(folder).free / 1e9
    return Check("cache", free >= NEEDED_DISK, f"{folder} ({free:.1f} GB free)",
                 "Free some space, or set GRADPRUNE_CACHE to a folder on another disk.")


def gpu() -> Check:
    """A GPU, for information: nothing here needs one."""
    import torch

    name = (torch.cuda.get_device_name() if torch.cuda.is_available() else
            "Apple GPU" if torch.backends.mps.is_available() else None)
    return Check("GPU", True, "none, and none is needed" if name is None else
                 f"{name}; the commands use it, unless told --device cpu")


# ---- gradprune itself


def checkpoints() -> Check:
    """The shipped models are there and intact."""
    from gradprune.base.errors import InputError
    from gradprune.base.paths import data_folder
    from gradprune.models.checkpoints import load_checkpoint
    from gradprune.victims.victim import names
    from gradprune.victims.zoo import SHIPPED

    wrong = [f"{name} is missing." for name in SHIPPED if name not in names()]
    for name in names():
        try:
            load_checkpoint(data_folder() / "checkpoints" / name)
        except InputError as error:
            wrong.append(f"{name}: {error}")
    return Check("checkpoints", not wrong, " ".join(wrong) or ", ".join(names()),
                 "Restore data/checkpoints from the repository, or train them again (about a minute each): "
                 "gradprune zoo build")


def kernel() -> Check:
    """Notebooks will run in this environment."""
    if not importlib.util.find_spec("ipykernel"):
        return Check("kernel", "warn", "ipykernel is not installed in this environment", f"To run notebooks, {INSTALL}")
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    # A bare name is replaced by the running Python when the kernel starts; a full path is taken as it is.
    own = os.sep not in program or Path(program).parent == Path(sys.executable).parent
    return Check("kernel", own or "warn", "ipykernel, in this environment" if own else
                 f"the kernel 'python3' runs another Python: {program}",
                 "Make it run this one: python -m ipykernel install --sys-prefix")


def self_test() -> Check:
    """Train a tiny network on easy pictures, score its filters, remove the worst; takes seconds."""
    from gradprune.cli.self_test import run

    return Check("self-test", *run(), "Run it again; if it fails again, report it with this whole output.")


CHECKS: dict[str, Callable[[], Check]] = {
    "Python": python, "packages": packages, "torch pair": torch_pair, "cores": cores, "memory": memory,
    "cache": cache, "GPU": gpu, "checkpoints": checkpoints, "notebooks": notebooks, "kernel": kernel,
    "self-test": self_test,
}


def main(arguments: list[str] | Any = None) -> int:
    """`python -m gradprune.cli.doctor [--json]`."""
    return report("--json" in (sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    raise SystemExit(main())
