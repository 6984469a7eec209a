import importlib.util
import tomllib
from types import ModuleType
from typing import Any

import pytest

from processes import ROOT
from seeds import scenes

pytestmark = pytest.mark.check

TABLE = tomllib.loads((ROOT / "scripts" / "seeds.toml").read_text("utf-8"))
KEYS = {"seed", "system", "kind", "says", "snippet", "describes", "types", "replaces", "because", "omitted", "expect"}
MORE = {"stream", "then", "check", "option", "env", "file", "runs", "hears", "scene", "packages", "compose", "after"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """`scripts/seeds.py`, which has the name of this folder."""
    spec = importlib.util.spec_from_file_location("seeds_script", ROOT / "scripts" / "seeds.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_labels_are_derived_from_the_typed_text(script: ModuleType) -> None:
    rows: dict[str, dict[str, Any]] = {
        "verbatim": {"says": "sh x.sh", "option": " PORT"},
        "changed": {"says": "mcp run x.py", "types": "millstream run x.py"},
        "described": {"describes": "a chat", "types": "curl localhost:8000/chat"},
        "not typed": {"says": "docker compose up", "omitted": "no Docker"},
    }
    assert {label: script.label(row) for label, row in rows.items()} == {label: label for label in rows}
    assert script.label({"snippet": "snippets_001:ORDERS_PY", "replaces": {"sse-mcp-server": "localhost"}}) == "changed"
    assert script.label({"snippet": "snippets_001:ORDERS_PY"}) == "verbatim"


def test_table_rows_are_complete(script: ModuleType) -> None:
    for row in TABLE["line"]:
        assert set(row) <= KEYS | MORE, row
        assert row["system"] in TABLE["systems"]
        assert ("expect" in row) is (script.label(row) != "not typed"), row
        assert ("because" in row) is (script.label(row) == "changed"), row
        assert ("file" in row) is ("runs" in row), row
        assert "scene" not in row or callable(getattr(scenes, row["scene"])), row
