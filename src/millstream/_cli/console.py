"""Questions of commands on the terminal, on standard error because standard output is for results."""

import sys
from getpass import getpass

from millstream._cli.signals import interrupt_reads


def confirm(question: str) -> bool:
    """Ask until the answer is yes or no. An empty answer means no.

    Raises:
        EOFError: the input has ended.
    """
    while True:
        answer = ask(f"{question} [y/N]: ").strip().lower()
        if answer in ("y", "yes"):
            return True
        if answer in ("", "n", "no"):
            return False
        print("Type y or n.", file=sys.stderr)


def ask(prompt: str) -> str:
    """Read one line.

    Raises:
        EOFError: the input has ended.
    """
    sys.stderr.write(prompt)
    sys.stderr.flush()
    with interrupt_reads():
        line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


def ask_password() -> str:
    """Ask for a password twice, without echo, until both match.

    Raises:
        EOFError: the input has ended.
    """
    while True:
        with interrupt_reads():
            password = getpass("Password: ", stream=sys.stderr)
            if password and password == getpass("Repeat for confirmation: ", stream=sys.stderr):
                return password
        print("The two passwords differ." if password else "The password is empty.", file=sys.stderr)
