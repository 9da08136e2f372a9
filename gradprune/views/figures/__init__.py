"""Figures: plain data in, a `Picture` with a one-sentence summary out."""
