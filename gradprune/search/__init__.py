"""Triggers and other small changes of an image, found by gradient for each class or family; the trigger is unknown."""

from gradprune.search.changes import FAMILIES, SEARCHABLE, Change, Part, draw, inflow, search_changes
from gradprune.search.inversion import Alternating, Inversion, Inverted, invert, outliers
from gradprune.search.whole_image_inversion import Perturbed, perturb

__all__ = ["FAMILIES", "SEARCHABLE", "Alternating", "Change", "Inversion", "Inverted", "Part", "Perturbed", "draw",
           "inflow", "invert", "outliers", "perturb", "search_changes"]
