"""What a notebook runs: setup, checks, predictions, restart points, and the material of single lessons."""
