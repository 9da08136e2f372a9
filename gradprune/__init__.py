"""gradprune: learn, see and use backdoor removal by gradient-based filter pruning.

    import gradprune as gp
    victim = gp.load_victim("badnets")
    result = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=10)
    print(result, victim.evaluate(result.model))

The subpackages, in reading order, which is import order:

    base/        errors, paths and atomic writing, devices, checks of pickles
    datasets/    images as two tensors; rendered signs, published sets, folders
    models/      networks (own, torchvision's, timm's), checkpoints, export
    attacks/     nine triggers (one per file), poisoning, training
    pruning/     the subject: filters, losses, scores, recipes, fine-tuning
    search/      triggers and other changes of an image, found by gradient
    defenses/    grad_prune, repair (trigger unknown), twelve baselines: one call
    evaluation/  ACC, ASR, RA, DER, replays, relearning
    victims/     a model with its data and trigger: shipped, your own, BackdoorBench
    bench/       every defence on every attack; its rows, summary and ranking
    views/       figures/, panels/ (widgets), reports/ (pages)
    cli/         the command `gradprune`, one file per command
    lessons/     runtime/ (checks, predictions, progress), exercises/

Import them as `gradprune.base`, `gradprune.datasets`, `gradprune.models`, `gradprune.attacks`, `gradprune.pruning`,
`gradprune.search`, `gradprune.defenses`, `gradprune.evaluation`, `gradprune.victims`, `gradprune.bench`,
`gradprune.views`, `gradprune.cli`, `gradprune.lessons`.
Method: Dunnett et al., 2024, arXiv:2405.03918.
"""

__version__ = "0.1.0"

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradprune.attacks import Picture, fit, make_trigger, poison
    from gradprune.base.errors import InputError
    from gradprune.datasets import ImageSet, load
    from gradprune.defenses import DefenseResult, grad_prune, repair
    from gradprune.evaluation import Metrics, der, evaluate
    from gradprune.models import build, load_weights
    from gradprune.pruning import FilterMask, filter_scores
    from gradprune.pruning.filters import filters
    from gradprune.victims import Victim, load_victim
    from gradprune.victims.slimming import slim
    from gradprune.victims.zoo import attack

# Loaded when first used: importing torch takes seconds, `gradprune --help` does not need it, and `gradprune doctor`
# must run where torch is broken.
_HOMES = {"attacks": "Picture fit make_trigger poison", "datasets": "ImageSet load",
          "defenses": "DefenseResult grad_prune repair", "base.errors": "InputError",
          "evaluation": "Metrics der evaluate", "victims": "Victim load_victim", "models": "build load_weights",
          "pruning": "FilterMask filter_scores", "pruning.filters": "filters", "victims.slimming": "slim",
          "victims.zoo": "attack"}
_ROOMS = {"base", "datasets", "models", "attacks", "pruning", "search", "defenses", "evaluation", "victims", "bench",
          "views", "cli", "lessons"}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["DefenseResult", "FilterMask", "ImageSet", "InputError", "Metrics", "Picture", "Victim", "attack", "build",
           "der", "evaluate", "filter_scores", "filters", "fit", "grad_prune", "load", "load_victim", "load_weights",
           "make_trigger", "poison", "repair", "slim"]


def __getattr__(name: str) -> Any:
    """Fetch a public name, or a room such as `gradprune.pruning`, at its first use."""
    if name in _ROOMS:
        return import_module(f"gradprune.{name}")
    if name in _HOME:
        return getattr(import_module(f"gradprune.{_HOME[name]}"), name)
    raise AttributeError(f"module 'gradprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
