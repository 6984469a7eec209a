"""Give every module that is not public a private name: `millstream.app` becomes `millstream._app`, and so on.

A module whose name begins with an underscore is private to type checkers: `pyright --verifytypes` leaves it out. Run
this once on a checkout, ``python scripts/private_modules.py .``. It renames folders and files, and rewrites what names
them in sources, tests, documents and settings. `tests/typing` runs it on a copy, to see what is public and has types.
"""

import re
import sys
from pathlib import Path

PUBLIC = frozenset(("__init__", "__main__", "auth", "config", "testing"))
"""Modules of the package that users import from; a folder among them keeps its own name and hides what is inside."""
EMPTY = ("gateway", "agent")
"""Houses that have a place in the order, and may have no code yet."""
TEXTS = frozenset((".py", ".md", ".toml", ".html", ".css", ".js", ".txt", ".yml", ".yaml", ".cfg", ".json", ""))
LEFT_ALONE = frozenset((".git", ".venv", "node_modules", "__pycache__"))


def rename(root: Path) -> None:
    """Rename the modules below ``root/src/millstream``, and what mentions them below `root`."""
    package = root / "src" / "millstream"
    houses = sorted(_modules(package) - PUBLIC)
    rooms = {home: sorted(_modules(package / home)) for home in PUBLIC if (package / home).is_dir()}
    rules = [(_dotted("millstream", houses), r"\1_\2"), (_slashed("millstream", houses), r"\1_\2")]
    for home, names in rooms.items():
        rules += [(_dotted(f"millstream.{home}", names), r"\1_\2"), (_slashed(f"millstream/{home}", names), r"\1_\2")]
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in TEXTS and not LEFT_ALONE & set(path.relative_to(root).parts):
            _rewrite(path, rules)
    _rewrite_drawings(root / "docs" / "architecture.md", houses)
    _rewrite_layers(root / "tests" / "test_structure.py", houses)
    homes = re.compile(rf'^(    "\w+": ")({"|".join(houses)})\b', re.MULTILINE)
    _rewrite(package / "__init__.py", [(homes, r"\1_\2")])
    for home, names in rooms.items():
        _move(package / home, names)
    _move(package, houses)


def _rewrite_drawings(path: Path, houses: list[str]) -> None:
    """``server/dispatch.py`` in a drawing, and the table of houses."""
    names = "|".join([*houses, *EMPTY])
    if path.exists():
        steps = re.compile(rf"(^|[ \[])({names})(?=/[\w/]+\.py\b)", re.MULTILINE)
        cells = re.compile(rf"^(\| `)({names})(?=` \|)", re.MULTILINE)
        _rewrite(path, [(steps, r"\1_\2"), (cells, r"\1_\2")])


def _rewrite_layers(path: Path, houses: list[str]) -> None:
    """The order of the houses, the names of those with rooms, and two files that are named alone."""
    if not path.exists():
        return
    text = path.read_text("utf-8")
    layers = re.search(r"^LAYERS = \[.*?^\]", text, re.MULTILINE | re.DOTALL)
    names = "|".join([*houses, *EMPTY])
    if layers is not None:
        text = text.replace(layers[0], re.sub(rf'"({names})"', r'"_\1"', layers[0]))
    text = re.sub(rf'^(    ")({names})(?=": \[)', r"\1_\2", text, flags=re.MULTILINE)
    text = re.sub(rf'(PACKAGE / ")({names})(?=")', r"\1_\2", text)
    path.write_text(text.replace('return "cli" if', 'return "_cli" if'), "utf-8")


def _modules(folder: Path) -> set[str]:
    """Modules and packages in a folder that don't have a private name."""
    return {
        path.stem for path in folder.iterdir() if not path.name.startswith(("_", ".")) and path.suffix in (".py", "")
    }


def _dotted(home: str, names: list[str]) -> re.Pattern[str]:
    """``millstream.app``, and ``from millstream import app``; not the function ``auth.keys``."""
    return re.compile(rf"(\b{re.escape(home)}\.)({'|'.join(names)})\b(?! ?\()")


def _slashed(home: str, names: list[str]) -> re.Pattern[str]:
    return re.compile(rf"(\b{re.escape(home)}/)({'|'.join(names)})\b")


def _rewrite(path: Path, rules: list[tuple[re.Pattern[str], str]]) -> None:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return
    new = text
    for pattern, made in rules:
        new = pattern.sub(made, new)
    if new != text:
        path.write_text(new, "utf-8")


def _move(folder: Path, names: list[str]) -> None:
    for name in names:
        for path in (folder / name, folder / f"{name}.py"):
            if path.exists():
                path.rename(path.with_name(f"_{path.name}"))


if __name__ == "__main__":
    rename(Path(sys.argv[1]))
