"""Every notebook untouched, from the top and from each restart point; a file of its own, so that two processes share the runs."""

import harness
import pytest
from harness import NOTEBOOKS, own_environment  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_runs_untouched_and_from_each_restart_point(path, tmp_path, monkeypatch, record_property):
    """With nothing attempted, from each restart cell to the next, all names forgotten before."""
    monkeypatch.setenv("GRADPRUNE_MODE", "ci")
    outcome = harness.run(harness.with_restarts(harness.read(path)), tmp_path)
    record_property("summary", harness.times(path.stem, "ci, with restarts", outcome))
    if outcome.faults:
        pytest.fail("\n".join(outcome.faults), pytrace=False)
