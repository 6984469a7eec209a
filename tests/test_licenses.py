import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

pytestmark = pytest.mark.check

LOCK = Path(__file__).resolve().parent.parent / "requirements" / "run.txt"
ALLOWED = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",  # certifi: a list of certificates; the license binds changes to the file itself only
    "PSF-2.0",
    "Unlicense",
}
CLASSIFIERS = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}


def locked() -> dict[str, str]:
    """Package name to environment marker, as the lock has them."""
    text = LOCK.read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)==[^\s;]+(?: ; (.*?))? \\$", text, re.MULTILINE))


def license_of(package: Distribution) -> str:
    """The SPDX expression, or what the classifiers or the old free-text field amount to."""
    expression = package.metadata.get("License-Expression")
    if expression:
        return expression
    known = [CLASSIFIERS[name] for name in package.metadata.get_all("Classifier", []) if name in CLASSIFIERS]
    return " OR ".join(known) or package.metadata.get("License", "").strip() or "none"


def is_allowed(expression: str) -> bool:
    """Whether one alternative of an SPDX expression consists of allowed licenses only."""
    inner = re.search(r"\(([^()]*)\)", expression)
    if inner:
        verdict = "MIT" if is_allowed(inner[1]) else "refused"
        return is_allowed(expression[: inner.start()] + verdict + expression[inner.end() :])
    return any(all(part.strip() in ALLOWED for part in one.split(" AND ")) for one in expression.split(" OR "))


def test_runtime_dependencies_have_allowed_licenses() -> None:
    refused: dict[str, str] = {}
    packages = locked()
    assert {"msgspec", "httptools", "cyclopts"} <= set(packages)
    for name, marker in packages.items():
        try:
            expression = license_of(distribution(name))
        except PackageNotFoundError:
            assert marker, f"{name} is locked for every platform and is not installed"
            continue
        if not is_allowed(expression):
            refused[name] = expression
    assert refused == {}


def test_license_expressions_are_parsed() -> None:
    assert is_allowed("GPL-3.0-only OR MIT")
    assert is_allowed("(Apache-2.0 OR GPL-2.0-only) AND BSD-3-Clause")
    assert is_allowed("(GPL-3.0-only OR GPL-2.0-only) AND BSD-3-Clause") is False
    assert is_allowed("Apache-2.0 AND BSD-3-Clause")
    assert is_allowed("Apache-2.0 AND GPL-3.0-only") is False
    assert is_allowed("none") is False


def test_locked_packages_have_hashes() -> None:
    locks = sorted(LOCK.parent.glob("*.txt"))
    assert LOCK in locks
    for path in locks:
        lines = path.read_text("utf-8").splitlines()
        for line, following in zip(lines, [*lines[1:], ""], strict=True):
            assert "==" not in line or line.startswith((" ", "#")) or following.startswith("    --hash=sha256:"), line
