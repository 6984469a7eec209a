"""Programs that are written for another library, and what becomes of them when they are ported."""

from pathlib import Path

import pytest

from millstream.compat._porting.rewriting import rewritten
from millstream.compat._porting.survey import survey

ORIGINALS = Path(__file__).resolve().parent / "originals"


@pytest.fixture(scope="module")
def ported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all programs, ported."""
    folder = tmp_path_factory.mktemp("ported")
    for path in ORIGINALS.glob("*.py"):
        source = path.read_text("utf-8")
        found = survey(source)
        assert not found.missing, found.missing
        (folder / path.name).write_text(rewritten(source, found.changes), "utf-8")
    return folder
