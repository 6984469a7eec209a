"""``python -m millstream``: the command line, if its script isn't on the PATH."""

from millstream._cli import main

if __name__ == "__main__":
    main()
