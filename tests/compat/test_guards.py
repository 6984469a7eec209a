"""What a program for another library guards is guarded here, or the program hears that it is not."""

from typing import Any

import pytest

from millstream.compat.fastmcp import standalone


@pytest.mark.parametrize("option", ["auth", "security", "exclude_args"])
def test_an_option_that_keeps_somebody_out_is_refused_and_not_passed_over(option: str) -> None:
    """Without the check that the program names, everybody could do what it guards."""
    mcp = standalone.FastMCP("guarded")
    guards: dict[str, Any] = {option: [lambda context: False]}
    for register in (mcp.tool(**guards), mcp.resource("a://{isbn}", **guards), mcp.prompt(**guards)):
        with pytest.raises(TypeError, match=option):
            register(lambda isbn: isbn)
    assert not mcp.engine.registry.tools


def test_sign_in_by_the_environment_is_refused_and_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """fastmcp 2 takes a provider from there; a server that ignored it would be open."""
    monkeypatch.setenv("FASTMCP_SERVER_AUTH", "fastmcp.server.auth.providers.jwt.JWTVerifier")
    with pytest.raises(ValueError, match="FASTMCP_SERVER_AUTH"):
        standalone.FastMCP("open")
