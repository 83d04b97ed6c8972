"""`python -m tailcut` is the `tailcut` command."""

from tailcut.cli import main

if __name__ == "__main__":
    main()
