"""`python -m gradprune` is the command `gradprune`."""

from gradprune.cli import main

main()
