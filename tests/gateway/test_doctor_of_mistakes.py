"""Mistakes in a gateway's file that only show when its upstreams are set up, as `doctor` reports them."""

from pathlib import Path

import pytest

from command_line import run_in_process

DOCUMENT = '{"openapi": "3.1.0", "info": {"title": "o", "version": "1"}, "servers": [{"url": "http://127.0.0.1:9"}]}'


def test_doctor_explains_credentials_for_an_api_without_a_base_url(tmp_path: Path) -> None:
    (tmp_path / "orders.json").write_text(DOCUMENT)
    file = tmp_path / "gateway.toml"
    file.write_text(
        '[upstreams.orders]\nopenapi = "orders.json"\n'
        '[upstreams.orders.auth]\nkind = "headers"\nheaders = { Authorization = { env = "ORDERS_KEY" } }\n'
    )
    result = run_in_process("doctor", str(file), env={"ORDERS_KEY": "a-key-of-orders"})
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert "base_url" in result.output


MISTAKES = {
    'openapi = "orders.json"\nforward_headers = ["x-tenant"]': "Set openapi.base_url",
    'command = ["python"]\nforward_headers = ["x-tenant"]': "in env",
    'url = "http://127.0.0.1:9/mcp"\nforward_headers = ["host"]': "can't contain 'host'",
    'url = "http://127.0.0.1:9/mcp"\nauth = { kind = "per_user_oauth" }': "[auth.issuer]",
    'url = "http://127.0.0.1:9/mcp"\nheaders = { Authorization = "a" }\n'
    'auth = { kind = "bearer", env = "ORDERS_KEY" }': "Remove one of them",
}
"""Options of an upstream, with what explains the mistake in them."""


@pytest.mark.parametrize("options", MISTAKES)
def test_doctor_explains_mistakes_that_show_when_the_gateway_starts(tmp_path: Path, options: str) -> None:
    (tmp_path / "orders.json").write_text(DOCUMENT)
    file = tmp_path / "gateway.toml"
    file.write_text(f"[upstreams.orders]\n{options}\n")
    result = run_in_process("doctor", str(file), env={"ORDERS_KEY": "a-key-of-orders"})
    assert result.exit_code == 1
    assert "FAIL" in result.output
    assert MISTAKES[options] in " ".join(result.output.split())


def test_doctor_reads_variables_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(
        'instructions = "${GREETING}"\n[upstreams.orders.openapi]\ndocument = "orders.json"\nbase_url = "${ORDERS}"\n'
    )
    (tmp_path / "orders.json").write_text(DOCUMENT)
    (tmp_path / "gateway.env").write_text("GREETING=Hello\nORDERS=http://127.0.0.1:9\n")
    assert "GREETING isn't set" in run_in_process("doctor", str(file)).output
    result = run_in_process("doctor", str(file), "--env-file", str(tmp_path / "gateway.env"))
    assert "isn't set" not in result.output
    assert "upstream orders" in result.output
