"""``python -m millstream``: the command, for where only the interpreter is known."""

from millstream._cli import main

if __name__ == "__main__":
    main()
