from pathlib import Path

import pytest

from cases import for_each
from millstream.agent import ConfigurationError
from millstream.agent._configuration import Configuration
from millstream.files import read_env

SEED = """\
# Configuration of the API
API_KEY=sk-file
API_URL=https://api.example.com/v1
DEFAULT_MODEL=qwen3-next:80b

export MCP_SERVER_URL="http://localhost:9000"   # without a path
MCP_SERVER_AUTH_KEY='my secret # key'
"""
FILE = read_env(SEED)


def configured(environment: dict[str, str] | None = None, file: dict[str, str] | None = None) -> Configuration:
    return Configuration(FILE if file is None else file, environment or {})


def test_configuration_files_contain_names_and_values() -> None:
    assert FILE["DEFAULT_MODEL"] == "qwen3-next:80b"
    assert FILE["MCP_SERVER_URL"] == "http://localhost:9000"
    assert FILE["MCP_SERVER_AUTH_KEY"] == "my secret # key"


def test_seed_configuration_file_selects_the_model() -> None:
    model = configured().model()
    assert (model.name, model.url) == ("qwen3-next:80b", "https://api.example.com/v1")
    model = configured().model("mine", "http://127.0.0.1:11434/v1")
    assert (model.name, model.url) == ("mine", "http://127.0.0.1:11434/v1")


def test_openai_variables_configure_the_model() -> None:
    assert configured({"OPENAI_API_KEY": "sk"}, {"DEFAULT_MODEL": "gpt"}).model().url == "https://api.openai.com/v1"


def test_environment_takes_precedence_over_the_file() -> None:
    chosen = configured({"OPENAI_API_KEY": "sk-mine"}).model()
    assert chosen.url == "https://api.openai.com/v1"


def test_model_names_can_select_a_provider() -> None:
    chosen = configured({"ANTHROPIC_API_KEY": "sk"}, {}).model("anthropic:claude-sonnet-4-5")
    assert (chosen.name, chosen.url) == ("claude-sonnet-4-5", "anthropic")
    assert configured().model("mistral:7b").url == "https://api.example.com/v1"


def test_azure_variables_select_the_model() -> None:
    azure = {"AZURE_OPENAI_ENDPOINT": "https://me.openai.azure.com", "AZURE_OPENAI_API_KEY": "k", "DEFAULT_MODEL": "d"}
    with pytest.raises(ConfigurationError, match="OPENAI_API_VERSION"):
        configured(azure, {}).model()
    assert "me.openai.azure.com" in configured({**azure, "OPENAI_API_VERSION": "2024-10-21"}, {}).model().url


@for_each(
    ("environment", "words"),
    [
        ({}, "No model is configured"),
        ({"API_KEY": "sk"}, "API_KEY is set, but API_URL isn't"),
        ({"OPENAI_API_KEY": "sk"}, "No model is selected"),
    ],
)
def test_error_names_the_missing_configuration(environment: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        configured(environment, {}).model()


def test_seed_configuration_file_selects_the_server() -> None:
    server = configured().server()
    assert server is not None
    assert server.target == "http://localhost:9000/sse"
    assert server.headers == {"Authorization": "Bearer my secret # key"}
    assert configured(file={}).server() is None
    keyed = configured({"MCP_SERVER_AUTH_KEY": "k"}, {}).server()
    assert keyed is not None
    assert keyed.target == "http://localhost:8000/sse"
    for url in ("localhost", "http://["):
        with pytest.raises(ConfigurationError, match="isn't a URL"):
            configured({"MCP_SERVER_URL": url, "MCP_SERVER_AUTH_KEY": "k"}).server()


def test_server_keys_are_sent_only_to_that_server() -> None:
    own = configured()
    assert own.headers_for("http://127.0.0.1:9000/mcp") == {"Authorization": "Bearer my secret # key"}
    for url in ("http://localhost:9001/mcp", "https://localhost:9000/mcp", "http://evil.example:9000", "http://[", "x"):
        assert own.headers_for(url) == {}


def test_files_cannot_redirect_keys_from_the_environment() -> None:
    stolen = {"OPENAI_API_KEY": "sk-mine"}
    with pytest.raises(ConfigurationError, match="same place"):
        configured(stolen, {"OPENAI_BASE_URL": "https://evil.example/v1", "DEFAULT_MODEL": "m"}).model()
    with pytest.raises(ConfigurationError, match="same place"):
        configured({"MCP_SERVER_AUTH_KEY": "mine"}, {"MCP_SERVER_URL": "https://evil.example"}).server()
    both = {**stolen, "OPENAI_BASE_URL": "https://api.example.com/v1"}
    assert configured(both, {"DEFAULT_MODEL": "m"}).model().url == "https://api.example.com/v1"


def test_missing_file_is_an_error_only_if_requested(tmp_path: Path) -> None:
    assert Configuration.load(tmp_path / ".env", {}).get("API_KEY") == ""
    with pytest.raises(ConfigurationError, match="can't be read: No such file"):
        Configuration.load(tmp_path / "other.env", {}, required=True)
    (tmp_path / ".env").write_bytes(b"A=\xff")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        Configuration.load(tmp_path / ".env", {})
