"""Jobs that write files, and faults that strike them, for test_faults.py; each runs in a process that may die of it."""

import contextlib
import ctypes
import hashlib
import importlib
import io
import os
import resource
import signal
import time
from functools import partial

import numpy as np
import torch

from gradprune.cli.app import app
from gradprune.datasets import load
from gradprune.datasets.download import Remote
from gradprune.datasets.published import PUBLISHED, Published, get, load_published
from gradprune.lessons.runtime import progress, workshop
from gradprune.victims import zoo

IMAGES = 100
CONTENT = np.random.default_rng(0).integers(0, 256, IMAGES * 3 * 32 * 32, np.uint8).tobytes()  # more reads than a download has tries
KILLED = -signal.SIGKILL


def to_arrays(path):
    """The published file of the tests as arrays."""
    images, labels = np.frombuffer(path.read_bytes(), np.uint8).reshape(IMAGES, 3, 32, 32), np.arange(IMAGES) % 2
    return {"x_train": images[:40], "y_train": labels[:40], "x_test": images[40:], "y_test": labels[40:]}


# ---- jobs: (store, made, url) -> nothing; what they read is in `store`, what they write in `made`


def command(*arguments):
    app([str(argument) for argument in arguments], prog_name="gradprune")


def attack(store, made, url):
    command("attack", "badnets", "--data", store / "data.npz", "--width", 4, "--epochs", 2, "--target", 1,
            "--out", made / "model")


def defend(store, made, url):
    grad_prune = importlib.import_module("gradprune.defenses.grad_prune")
    grad_prune.fine_tune = partial(grad_prune.fine_tune, max_epochs=2)
    command("defend", store / "victim", "--spc", 2, "--recipe", "paper", "--out", made / "model")


def zoo_build(store, made, url):
    settings = {"trigger": "badnets", "data": str(store / "data.npz"), "target": 1, "epochs": 1,
                "model": {"name": "preact_resnet", "width": 4, "blocks": [1]}}
    zoo.SHIPPED = {"model": settings, "second": settings | {"trigger": "sig"}}
    command("zoo", "build", "--out", made)


def download(store, made, url):
    PUBLISHED["toy"] = _toy(url)
    get("toy", made, progress=False)


def convert(store, made, url):
    PUBLISHED["toy"] = _toy(url)
    load_published("toy", folder=made)


def _toy(url):
    remote = Remote("toy.bin", (url,), hashlib.md5(CONTENT).hexdigest(), len(CONTENT))
    return Published("a toy", ((remote,),), lambda path: to_arrays(path), ("a", "b"))


def folder(store, made, url):
    load(store / "pictures", size=8)


def remember(store, made, url):
    progress.remember("answers", "02.new", 2)


def fill(store, made, url):
    workshop.PICTURES = 1
    os.chdir(made)
    workshop.workshop()


def bench(store, made, url):
    command("bench", "--attacks", store / "victim", "--defenses", "clp", "--spc", "2", "--seeds", 2, "--out", made)


# name -> (the job; the call in the middle of its work, and which one; the largest file that a full disk takes, bytes)
JOBS = {
    "training": (attack, "torch.optim:SGD.step", 2, 600),
    "pruning": (defend, "gradprune.pruning.paper:validate", 3, 600),
    "fine-tuning": (defend, "torch.optim:SGD.step", 2, 600),
    "zoo build": (zoo_build, "torch.optim:SGD.step", 2, 600),
    "download": (download, "http.client:HTTPResponse.read1", 3, 600),
    "conversion": (convert, "faults:to_arrays", 1, 600),
    "folder cache": (folder, "gradprune.datasets.folder:decode", 3, 600),
    "progress file": (remember, "gradprune.lessons.runtime.progress:_entries", 1, 40),
    "lesson's folder": (fill, "PIL.Image:Image.save", 3, 600),
    "bench": (bench, "gradprune.bench.cells:_figures", 2, 600),
}


# ---- faults


def strike(place, call, action, lasting=False):
    """Let the call with this number of "module:name", or all from it on, begin with `action(its arguments)`."""
    module, _, path = place.partition(":")
    *homes, name = path.split(".")
    home = importlib.import_module(module)
    for part in homes:
        home = getattr(home, part)
    real, calls = getattr(home, name), []

    def struck(*arguments, **more):
        calls.append(name)
        if len(calls) == call or (lasting and len(calls) > call):
            action(*arguments)
        return real(*arguments, **more)

    setattr(home, name, struck)


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt(*_):
    signal.raise_signal(signal.SIGINT)


def exhaust(*_):
    raise MemoryError


def exhaust_torch(*_):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")


def spoil(optimizer, *_):
    """NaN in the gradients of this step, whether they are there already or come from the step's own closure."""
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad.fill_(float("nan"))
        parameter.register_hook(lambda gradient: gradient * float("nan"))


def half_then(action):
    """In the middle of a write: what is about to get its name is only half there."""
    def halve(temporary, *_):
        os.truncate(temporary, os.path.getsize(temporary) // 2)
        action()
    return halve


def full_disk(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def read_only(made):
    """A folder that cannot be written, by root neither: its rights to overrule are given up."""
    made.chmod(0o555)
    if os.geteuid() == 0:
        ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
    assert not os.access(made, os.W_OK)


def wild_clock():
    """Every look at the clock finds another century."""
    years = iter(range(10**9))
    time.time = lambda: (0.0, 4e9, 1.0, 2e9)[next(years) % 4]


def arm(fault, job, made):
    _, place, call, limit = JOBS[job]
    write = 2 if job == "bench" else 1  # its first file says what made the rows
    {"none": lambda: None, "kill": lambda: strike(place, call, kill), "Ctrl-C": lambda: strike(place, call, interrupt),
     "kill in the write": lambda: strike("os:replace", write, half_then(kill)),
     "kill between two names": lambda: strike("os:replace", write + 1, kill),
     "Ctrl-C in the write": lambda: strike("os:replace", write, half_then(interrupt)),
     "full disk": lambda: full_disk(limit), "read-only": lambda: read_only(made), "clock": wild_clock,
     "NaN": lambda: strike(place, call, spoil),
     "memory": lambda: strike(place, call, exhaust_torch if place.startswith("torch") else exhaust,
                             lasting=True)}[fault]()


def work(pipe, job, fault, store, made, url):
    """Run a job with a fault; sends its exit code and what it said."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ |= {"GRADPRUNE_CACHE": str(made), "GRADPRUNE_PROGRESS": str(made / "progress.json")}
    arm(fault, job, made)
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            JOBS[job][0](store, made, url)
        except SystemExit as end:
            code = end.code or 0
        except BaseException as error:  # what Python's own end of a program would print
            said.write(f"{type(error).__name__}: {error}")
            code = 1
    pipe.send((code, said.getvalue()))
