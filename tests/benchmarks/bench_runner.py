"""What the bench adds to its cells: python tests/benchmarks/bench_runner.py (two minutes; part of `make bench`).

Overhead = (wall time x workers - the cells' own seconds) / the cells' own seconds, in one run. The start of worker processes
is paid once a run, so it is told apart: a table of a thousand cells does not feel it.
"""

import tempfile
import time

from gradprune.bench import Grid, run

GRID = Grid(["badnets", "blended"], ["grad_prune", "ft", "ft_unlearn", "anp"], [2], 2)


def main():
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            table = run(GRID, folder, workers=workers, progress=False)
            wall = time.perf_counter() - start
            start = time.perf_counter()
            run(GRID, folder, workers=workers, progress=False)
            idle = time.perf_counter() - start
        cells = table.cell_seconds.sum()
        print(f"{workers} worker{'s' * (workers > 1)}: {len(table)} cells of {cells:.1f} s in {wall:.1f} s; "
              f"overhead {wall * workers / cells - 1:+.1%}; the same command once more: {idle:.1f} s")


if __name__ == "__main__":
    main()
