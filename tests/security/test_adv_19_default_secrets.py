"""Default secrets and missing authentication (CVE-2026-53709, CVE-2026-78573): there is no well-known key.

tests/auth/test_public_bind.py tests which addresses need authentication.
"""

import re
from pathlib import Path

import pytest

import millstream
from auth_world import run_guarded
from four_workers import ON_FOUR
from millstream import Server, Settings
from wire import request

COMMON = ["", "secret", "changeme", "admin", "password", "key", "token", "test", "default", "my_secret_key",
          "millstream", "ma_cle_docker_secrete", "my-test-key", "null", "None", "undefined",
          "0", "true", "*"]  # fmt: skip


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_common_secrets_are_rejected(way: str) -> None:
    async with run_guarded(way=way) as world:
        for key in COMMON:
            assert (await world.post(key, request("ping"))).status in (400, 401, 403)


def test_servers_have_no_default_key() -> None:
    assert Settings().auth_key == Settings().auth_keys == ""
    assert not Server("s", settings=Settings()).definition.protected


def test_source_code_contains_no_secret() -> None:
    pattern = re.compile(
        r"""(?i)(?:key|secret|token|password)\w*\s*[:=]\s*["'](?=\S*\d)(?=\S*[a-z])[\w+/=-]{20,}["']"""
    )
    found = [
        f"{path.name}: {match[0]}"
        for path in Path(millstream.__file__).parent.rglob("*.py")
        for match in pattern.finditer(path.read_text("utf-8"))
    ]
    assert found == []
