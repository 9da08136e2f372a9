"""Figures, the report page and the panels: plain data in, a `Picture` with a one-sentence summary out.

`import gradprune` does not import this package, so matplotlib is loaded only where something is drawn. The panels
need ipywidgets (the extra `notebooks`), which is loaded with the first panel.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradprune.base.errors import InputError
from gradprune.views.figures.example_images import examples
from gradprune.views.figures.picture import Picture
from gradprune.views.figures.plots import before_after, loss_curves, pruning_trajectory, score_heatmap
from gradprune.views.reports.bench_report import write_bench_report
from gradprune.views.reports.report import write_report

if TYPE_CHECKING:
    from gradprune.views.panels.beat_grad_prune import BeatGradPrune
    from gradprune.views.panels.defence_comparer import DefenceComparer
    from gradprune.views.panels.filter_explorer import FilterExplorer
    from gradprune.views.panels.one_neuron import OneNeuron
    from gradprune.views.panels.pruning_player import PruningPlayer
    from gradprune.views.panels.repair_panel import RepairPanel
    from gradprune.views.panels.scan_explorer import ScanExplorer
    from gradprune.views.panels.trigger_studio import TriggerStudio

__all__ = ["BeatGradPrune", "DefenceComparer", "FilterExplorer", "OneNeuron", "Picture", "PruningPlayer",
           "RepairPanel", "ScanExplorer", "TriggerStudio", "before_after", "examples", "loss_curves",
           "pruning_trajectory", "score_heatmap", "write_bench_report", "write_report"]

_PANELS = {"BeatGradPrune": "beat_grad_prune", "DefenceComparer": "defence_comparer",
           "FilterExplorer": "filter_explorer", "OneNeuron": "one_neuron", "PruningPlayer": "pruning_player",
           "RepairPanel": "repair_panel", "ScanExplorer": "scan_explorer", "TriggerStudio": "trigger_studio"}


def __getattr__(name: str) -> Any:
    """Load a panel on first use."""
    if name not in _PANELS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.panels.{_PANELS[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "ipywidgets":
            raise
        raise InputError(f"{name} needs ipywidgets; install it with: pip install 'gradprune[notebooks]'") from None
