"""Mistakes in a gateway's file that only show when its upstreams are set up, as `doctor` reports them."""

from pathlib import Path

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
