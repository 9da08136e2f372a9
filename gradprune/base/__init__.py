"""What everything stands on: errors, paths and atomic writing, devices, a look at pickles before they are opened."""

from gradprune.base.errors import InputError

__all__ = ["InputError"]
