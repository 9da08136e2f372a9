"""The command `gradprune`, one file per command; `main` runs it.

Nothing is imported here, so that `python -m gradprune.cli.doctor` runs where packages are missing or broken.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command line; the entry point of `gradprune` and `python -m gradprune`."""
    from gradprune.cli.app import main
    main()
