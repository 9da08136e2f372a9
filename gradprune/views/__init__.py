"""Figures and the report page: plain data in, a `Picture` with a one-sentence summary out.

Not imported by `import gradprune`: whoever draws pays for matplotlib, nobody else.
"""

from gradprune.views.picture import Picture
from gradprune.views.plots import before_after, examples, loss_curves, pruning_trajectory, score_heatmap
from gradprune.views.report import write_report

__all__ = ["Picture", "before_after", "examples", "loss_curves", "pruning_trajectory", "score_heatmap",
           "write_report"]
