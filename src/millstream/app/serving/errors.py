"""What the command line says when it cannot do what it was asked: what happened, why, and what to do."""

import sys


class CommandError(Exception):
    """Ends the command with a message of three parts; `detail` is text to show as it is (a traceback)."""

    def __init__(self, what: str, *, why: str = "", fix: str = "", detail: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.detail = detail


def report(error: CommandError) -> None:
    """Write the message to standard error, one part a line."""
    bold, dim, plain = ("\x1b[1;31m", "\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "", "")
    lines = [f"{bold}Error:{plain} {error.what}"]
    if error.detail:
        lines += [f"{dim}{error.detail.rstrip()}{plain}", ""]
    if error.why:
        lines.append(f"  Why:  {error.why}")
    if error.fix:
        lines.append(f"  Do:   {error.fix}")
    sys.stderr.write("\n".join(lines) + "\n")
