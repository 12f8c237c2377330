"""`python -m kinema` is the `kinema` command."""

from .runtime.cli import main

if __name__ == "__main__":
    main()
