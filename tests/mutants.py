"""Mutation testing: change one thing in the code at a time and see whether a test notices.

    make mutants                                            # all of them
    out/mutmut/bin/python tests/mutants.py "*metrics*"      # those whose name fits
    out/mutmut/bin/python tests/mutants.py --survivors      # those that lived last time

Mutmut (BSD) makes the mutants, all in one copy of the package under mutants/, where a switch says which one is alive. Its
own runner starts pytest anew for each; here the tests are collected and run once, which tells what they reach and how long
they take, and then a fork of this process runs for each mutant the tests that reach it, the quickest first. A mutant is
killed by a test that fails, or by taking too long; one that outlives `--seconds` of tests has survived. They come in random
order (always the same), so that after Ctrl-C those so far are a fair sample. Survivors stand in data/results/mutants.csv
with the class they were put into by hand; one without a class makes the command fail. Needs Linux or macOS.
"""

import argparse
import csv
import fnmatch
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KNOWN = ROOT / "data" / "results" / "mutants.csv"
TESTS = ("evaluation/test_metrics", "models/test_pairing", *(f"pruning/test_{name}" for name in (
    "scores", "filters", "fastest_candidate", "pruning_rules", "tuning_rules", "verified")))  # quick ones
SKIPPED = ("shipped", "winner_of_all", "small_vgg-1", "small_vgg-0", "preact_resnet-1", "preact_resnet-0.2", "preact_resnet-True",
           "small_vgg-True", "whole_defence", "keeps_the_best_round")  # over a second
os.environ["OMP_NUM_THREADS"] = "1"
Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["*"])
    parser.add_argument("--survivors", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU seconds of tests a mutant has to outlive")
    parser.add_argument("--tests", default=",".join(TESTS), help="names of test files")
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:] = [folder for folder in sys.path if folder != str(ROOT / "tests")]
    mutants = made()
    known = {key(row): row for row in csv.DictReader(KNOWN.open(encoding="utf-8"))} if KNOWN.exists() else {}
    chosen = [row for row in mutants if any(fnmatch.fnmatch(row["name"], name) for name in given.names)
              and (not given.survivors or key(row) in known)]
    random.Random(0).shuffle(chosen)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import pytest
    import tqdm
    tqdm.tqdm.monitor_interval = 0  # no thread beside this one, or a fork may wait for a lock that nobody gives back
    os.chdir("mutants")
    loop = Loop(chosen, given.seconds, given.workers)
    code = pytest.main(["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--rootdir=.", "-k", " and ".join(
        f"not {word}" for word in SKIPPED), *(f"tests/{name}.py" for name in given.tests.split(","))], plugins=[loop])
    if not loop.outcome:
        sys.exit(int(code) or 1)
    told([row for row in chosen if row["name"] in loop.outcome], loop.outcome, known, {key(row) for row in mutants})


def made() -> list[Row]:
    """Make the mutants; one row each: name, file, function, and the line before and after."""
    from mutmut import __main__ as mutmut
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    (ROOT / "mutants").mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.create_mutants(1)
    rows = []
    for data, name, _ in mutmut.collect_source_file_mutation_data(mutant_names=())[0]:
        lines = get_diff_for_mutant(name, path=data.path).splitlines()[2:]
        before, after = (" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
        rows.append({"name": name, "file": str(data.path), "function": name.rsplit("__mutmut_", 1)[0].rsplit(".", 1)[1],
                     "before": before, "after": after})
    return rows


def key(row: Row) -> tuple[str, ...]:
    """What a mutant is known by: its number changes with every line that is added above it."""
    return tuple(row[name] for name in ("file", "function", "before", "after"))


class Loop:
    """In place of pytest's loop: all tests once, then for each mutant those that reach it."""

    def __init__(self, mutants: list[Row], seconds: float, workers: int) -> None:
        self.mutants, self.seconds, self.workers = mutants, seconds, workers
        self.outcome: dict[str, str] = {}
        self.running: dict[int, str] = {}

    def pytest_runtestloop(self, session) -> bool:
        from mutmut.mutation.trampoline import set_mutant_under_test
        if session.testsfailed:
            return True
        set_mutant_under_test("stats")
        reach = self.reach(session.items)
        set_mutant_under_test("")
        quick = sorted({test for tests in reach.values() for test in tests if test[0] < 0.2}, key=lambda test: test[0])
        self.start("", [test for _, test in quick], 60, session.items)
        self.wait()
        if self.outcome.pop("") != "survived":
            sys.exit(1)
        try:
            self.run(reach, session.items)
        except KeyboardInterrupt:
            print("stopped: the mutants so far are a random sample", file=sys.__stderr__)
        return True

    def run(self, reach: dict[str, list], items: list) -> None:
        began = time.time()
        for count, mutant in enumerate(self.mutants, 1):
            tests, total = [], 0.0
            for seconds, item in reach[mutant["name"].rsplit("__mutmut_", 1)[0]]:
                if tests and total + seconds > self.seconds:
                    break
                tests.append(item)
                total += seconds
            if tests:
                self.start(mutant["name"], tests, total, items)
            else:
                self.outcome[mutant["name"]] = "not reached"
            if count % 50 == 0:
                print(f"{count} of {len(self.mutants)} mutants, {time.time() - began:.0f} s", file=sys.__stderr__, flush=True)
        while self.running:
            self.wait()

    def reach(self, items) -> dict[str, list]:
        """Run all tests; for each function those that reach it, as (CPU seconds, test), the quickest first."""
        from mutmut.state import state
        found = defaultdict(list)
        for item in items:
            state()._stats.clear()
            began = time.process_time()
            if failed(item, items):
                sys.exit(f"{item.nodeid} fails without any mutant")
            for function in state()._stats:
                found[function].append((time.process_time() - began, item))
        return defaultdict(list, {name: sorted(tests, key=lambda test: test[0]) for name, tests in found.items()})

    def start(self, name: str, tests: list, total: float, items: list) -> None:
        """A fork that runs the tests until one fails; it may take three times as long as they took, and 3 seconds."""
        from mutmut.mutation.trampoline import set_mutant_under_test
        from tqdm import tqdm
        from tqdm.auto import tqdm as auto
        while len(self.running) >= self.workers:
            self.wait()
        pid = os.fork()
        if pid:
            self.running[pid] = name
            return
        limit = int(time.process_time() + 3 * total + 3)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(int(60 + 20 * total))  # one that waits for ever uses no CPU
        set_mutant_under_test(name)
        for bar in (tqdm, auto):  # their own lock is shared by all forks: one killed while it draws would stop the others
            bar.set_lock(threading.RLock())
        try:
            for test in tests:
                if failed(test, items):
                    if not name:
                        print(f"{test.nodeid} fails in a fork, or run twice, without any mutant", file=sys.__stderr__, flush=True)
                    os._exit(1)
            os._exit(0)
        except BaseException:
            os._exit(1)

    def wait(self) -> None:
        pid, status = os.wait()
        code = os.waitstatus_to_exitcode(status)
        name = self.running.pop(pid)
        self.outcome[name] = "survived" if code == 0 else "killed" if code == 1 else "too long"
        if name and code != 1:
            print(f"{self.outcome[name]} {name}", file=sys.__stderr__, flush=True)


def failed(item, items) -> bool:
    """Run one test; the one that pytest believes to come next is of another file, so that the file's fixtures go."""
    from _pytest.runner import runtestprotocol
    other = next(one for one in items if one.path != item.path)
    return any(report.failed for report in runtestprotocol(item, log=False, nextitem=other))


def told(mutants: list[Row], outcome: dict[str, str], known: dict[tuple[str, ...], Row], all_: set[tuple[str, ...]]) -> None:
    """Print the figures, write the survivors, and fail where one has no class. Known ones that were not run stay."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    ran, survivors = {key(row) for row in mutants}, []
    for row in mutants:
        lived = outcome[row["name"]] not in ("killed", "too long")
        for name in (row["file"], "all"):
            counts[name][0] += 1
            counts[name][1] += not lived
        if lived:
            survivors.append({**row, "class": known.get(key(row), {}).get("class", "")})
    print(f"{'file':<40} mutants  killed")
    for name, (total, killed) in counts.items():
        print(f"{name:<40} {total:>7} {killed:>7} {killed / total:>7.1%}")
    kept = [row for place, row in known.items() if place in all_ - ran]
    with KNOWN.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "function", "before", "after", "class"], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted([*survivors, *kept], key=key))
    unexplained = sum(not row["class"] for row in survivors)
    print(f"{unexplained} survivors without a class in {KNOWN.relative_to(ROOT)}")
    sys.exit(bool(unexplained))


if __name__ == "__main__":
    main()
