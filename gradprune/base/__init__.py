"""What every other room uses: errors, paths and atomic writing, devices, and a check of pickles before loading."""

from gradprune.base.errors import InputError

__all__ = ["InputError"]
