"""gradprune: learn, see and use backdoor removal by gradient-based filter pruning.

    import gradprune as gp
    victim = gp.load_victim("badnets")
    result = gp.grad_prune(victim.model, victim.data.defense, victim.trigger, spc=10)
    print(result, victim.evaluate(result.model))

The rooms, in reading order: datasets, models, attacks, pruning, defenses, evaluation, views, lessons.
Method: Dunnett et al., 2024, arXiv:2405.03918.
"""

__version__ = "0.1.0"

from gradprune.attacks import fit, make_trigger, poison
from gradprune.datasets import ImageSet, load
from gradprune.defenses import DefenseResult, grad_prune
from gradprune.errors import InputError
from gradprune.evaluation import Metrics, der, evaluate
from gradprune.models import build
from gradprune.pruning import FilterMask, filter_scores
from gradprune.pruning.filters import filters
from gradprune.zoo import Victim, attack, load_victim

__all__ = ["DefenseResult", "FilterMask", "ImageSet", "InputError", "Metrics", "Victim", "attack", "build", "der",
           "evaluate", "filter_scores", "filters", "fit", "grad_prune", "load", "load_victim", "make_trigger",
           "poison"]
