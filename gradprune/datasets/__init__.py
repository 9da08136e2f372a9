"""Images and labels: sets in memory, the rendered signs, and loading by name, from a folder or from a file."""

from gradprune.datasets.folder import FolderImages, read_folder
from gradprune.datasets.image_set import Dataset, DefenseImages, ImageSet, class_name, draw_defense_images, split_off
from gradprune.datasets.published import get
from gradprune.datasets.signs import render_signs
from gradprune.datasets.sources import load

__all__ = ["Dataset", "DefenseImages", "FolderImages", "ImageSet", "class_name", "draw_defense_images", "get", "load",
           "read_folder", "render_signs", "split_off"]
