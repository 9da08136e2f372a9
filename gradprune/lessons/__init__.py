"""What the notebooks use: checks of exercises, predictions, restart points, and saved progress.

A notebook begins with `from gradprune.lessons import begin, check, checkpoint, predict, reveal` and `begin("02")`.
"""

from gradprune.lessons.runtime.check import CheckFailed, check, whose
from gradprune.lessons.runtime.notebook_setup import begin, mode
from gradprune.lessons.runtime.predictions import predict, reveal
from gradprune.lessons.runtime.restart_points import checkpoint

__all__ = ["CheckFailed", "begin", "check", "checkpoint", "mode", "predict", "reveal", "whose"]
