"""Break lines of the package one at a time, and print whether its tests fail: `scripts/mutants.py --count 60 --seed 1`.

Lines are a seeded random choice. Each mutant is a copy of the sources with one change: a comparison or a condition is
inverted, a number grows by one, `and` and `or` are swapped, or a `raise` is removed. The tests are those of the folders
that belong to the package, without servers; a mutant that they don't catch is tried with those of `--deep`. For all
mutants, the files that mention the module and its function most often run first. The folders run for the mutants that
remain. The copy goes first on PYTHONPATH, so the working tree isn't touched.
"""

import argparse
import ast
import compileall
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "millstream"
FOLDERS = {
    "_app": "transports server hub scale web cli workers behavior",
    "_cli": "cli",
    "_http": "transports security client cli",
    "_limits.py": "auth scale server",
    "_protocol": "protocol bad_input behavior properties extensions",
    "_server": "server behavior bad_input telemetry extensions scale",
    "_stores": "stores scale",
    "_telemetry": "telemetry auth",
    "_transports": "behavior transports bad_input rest",
    "_web": "web",
    "agent": "agent",
    "auth": "auth security",
    "client": "client",
    "compat": "compat",
    "extensions": "extensions",
    "_gateway": "gateway",
    "hub": "hub",
}
"""Package or module -> folders of its tests, the most effective ones first."""
FIRST = 8
"""Number of test files to run before the folders. They find most mutants, and folders take minutes."""
Mutant = tuple[Path, int, int, int, str]
"""File, line, first and last column, and the replacement."""
MARKS = "not server and not nightly and not check"
SWAPPED = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def change(node: ast.AST) -> str:
    """Return the source of a node with one change, or an empty string if there's none for it."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPPED:
        return ast.unparse(ast.Compare(node.left, [SWAPPED[type(node.ops[0])]()], node.comparators))
    if isinstance(node, ast.BoolOp):
        return "(" + ast.unparse(ast.BoolOp(SWAPPED[type(node.op)](), node.values)) + ")"
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return str(node.value + 1)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return str(not node.value)
    if isinstance(node, ast.Raise):
        return "pass"
    return ""


def places(path: Path) -> Iterator[tuple[int, int, int, str]]:
    """Yield line, first and last column, and the replacement, for each place within functions."""
    tree = ast.parse(path.read_text("utf-8"))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in function.body:
                for node in ast.walk(statement):
                    if isinstance(node, ast.expr | ast.stmt) and node.lineno == node.end_lineno:
                        text = change(node)
                        if text and node.end_col_offset is not None:
                            yield node.lineno, node.col_offset, node.end_col_offset, text


def choose(count: int, seed: int) -> list[Mutant]:
    """Choose places, each package as often as another."""
    chance = random.Random(seed)  # noqa: S311
    chosen: list[Mutant] = []
    while len(chosen) < count:
        package = sorted(FOLDERS)[len(chosen) % len(FOLDERS)]
        path = chance.choice(sorted(SOURCE.glob(package if package.endswith(".py") else f"{package}/**/*.py")))
        found = sorted(set(places(path)))
        if found:
            chosen.append((path, *chance.choice(found)))
    return chosen


def get_likely_files(path: Path, line: int, folders: list[str]) -> list[str]:
    """Return the test files that mention the module of a line, and the functions and classes around it, most often."""
    words = {path.stem.strip("_"), path.parent.name.strip("_")}
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        around = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if around and node.lineno <= line <= (node.end_lineno or line):
            words.add(node.name.strip("_"))
    patterns = [re.compile(rf"(?<![a-z]){re.escape(word)}(?![a-z])") for word in words]
    scores = {}
    for folder in folders:
        for file in sorted((ROOT / "tests" / folder).rglob("test_*.py")):
            text = f"{file.stem}\n{file.read_text('utf-8')}"
            scores[file] = sum(min(len(pattern.findall(text)), 9) for pattern in patterns)
    return [str(file.relative_to(ROOT)) for file in sorted(scores, key=lambda file: -scores[file])[:FIRST]]


def run_tests(mutant: Mutant, tests: list[str], marks: str, seconds: float) -> str:
    """Run tests against a copy of the sources, up to the first failure. Return how they caught the mutant, or nothing.

    A hanging run counts as caught.
    """
    path, line = mutant[:2]
    with TemporaryDirectory(prefix="millstream-") as folder:
        shutil.copytree(SOURCE, Path(folder) / "millstream")
        copy = Path(folder) / "millstream" / path.relative_to(SOURCE)
        lines = copy.read_text("utf-8").split("\n")
        lines[line - 1] = break_line(mutant)
        copy.write_text("\n".join(lines), "utf-8")
        # Bytecode of the tests and of the copy is kept: without it, each run compiles them for ten seconds.
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": ""}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", marks, *tests]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "hangs"
    return "" if done.returncode in (0, 5) else "fails"


def break_line(mutant: Mutant) -> str:
    """Return the broken line."""
    path, line, start, end, text = mutant
    before = path.read_text("utf-8").split("\n")[line - 1].encode()
    return (before[:start] + text.encode() + before[end:]).decode()


def print_row(result: str, mutant: Mutant) -> None:
    path, line = mutant[:2]
    before = path.read_text("utf-8").split("\n")[line - 1]
    print(f"{result:28} {path.relative_to(SOURCE)}:{line}", flush=True)
    print(f"{'':28}   - {before.strip()}\n{'':28}   + {break_line(mutant).strip()}", flush=True)


def main() -> None:
    """Print a row for each mutant, and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--deep", default="", help="marks for a second look, such as 'not check'")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the tests of one mutant may take")
    options = parser.parse_args()
    compileall.compile_dir(SOURCE, quiet=1)
    left = choose(options.count, options.seed)
    for marks, likely in ((MARKS, True), (MARKS, False), (options.deep, False)):
        for mutant in [*left] if marks else []:
            folders = FOLDERS[mutant[0].relative_to(SOURCE).parts[0]].split()
            runs = [(f"tests/{name}", [f"tests/{name}"]) for name in folders]
            if likely:
                runs = [("likely files", get_likely_files(mutant[0], mutant[1], folders))]
            for name, tests in runs:
                how = run_tests(mutant, tests, marks, options.seconds)
                if how:
                    print_row(f"{name} {how}" if marks == MARKS else f"{name} {how} (deep)", mutant)
                    left.remove(mutant)
                    break
    for mutant in left:
        print_row("SURVIVED", mutant)
    print(f"{options.count - len(left)} of {options.count} were caught.")


if __name__ == "__main__":
    main()
