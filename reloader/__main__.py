"""`python -m reloader` is the `reloader` command."""

from reloader.cli import main

if __name__ == "__main__":
    main()
