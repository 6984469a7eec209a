from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from cpu import check_linear
from millstream._app.server_process import CommandError
from millstream._cli.serve import read_file
from millstream.agent import ConfigurationError
from millstream.agent._configuration import Configuration
from millstream.files import EnvFileError, read_env, read_env_file


def test_env_files_are_read_like_python_dotenv() -> None:
    for text, value in (
        ("A=b", "b"),
        ("export A = b ", "b"),
        ("A=b\r\n", "b"),
        ("A=", ""),
        ("A=b # why", "b"),
        ("A=b#c", "b#c"),
        ("A=it's=$HOME", "it's=$HOME"),
        ("A='b # c' # why", "b # c"),
        (r'A="a\nb\"c"', 'a\nb"c'),
        ("A='one\ntwo'", "one\ntwo"),
        ("# A=1\n\nA=2\nA=3\n# end", "3"),
    ):
        assert read_env(text) == {"A": value}, text


def test_multiline_values_are_followed_by_the_next_entry() -> None:
    key = "-----BEGIN KEY-----\nabc=\n-----END KEY-----\n"
    assert read_env(f'KEY="{key}"\nexport NEXT=1\n') == {"KEY": key, "NEXT": "1"}


def test_invalid_lines_are_reported_by_number_and_not_shown() -> None:
    for text, message in (
        ("A=1\nnonsense\n", "Line 2 of .env isn't NAME=VALUE."),
        ("A='1\n2'\n\n=3", "Line 4 of .env isn't NAME=VALUE."),
        ("export A", "Line 1 of .env isn't NAME=VALUE."),
        ("A='b", "Line 1 of .env isn't NAME=VALUE."),
        ("A='b'c", "Line 1 of .env isn't NAME=VALUE."),
        ("A=b\0", ".env contains a null byte, which variables can't contain."),
        ("A=1\nB=b" + " " * 1001, "Line 2 of .env has more than 1,000 spaces in a row."),
    ):
        with pytest.raises(EnvFileError) as caught:
            read_env(text)
        assert str(caught.value) == message


def test_all_commands_read_env_files_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text('API_KEY="a\\"b"\nOTHER=\'x\ny\'\n')
    assert read_file(path) == read_env_file(path) == {"API_KEY": 'a"b', "OTHER": "x\ny"}
    assert Configuration.load(path, {}).get("API_KEY") == 'a"b'
    for content in (b"\xff", b"A='"):
        path.write_bytes(content)
        with pytest.raises(CommandError) as caught:
            read_file(path)
        with pytest.raises(ConfigurationError) as configured:
            Configuration.load(path, {})
        assert caught.value.what == str(configured.value)
    path.unlink()
    with pytest.raises(CommandError, match="can't be read: No such file"):
        read_file(path)


def test_env_files_are_read_in_linear_time() -> None:
    def read(before: str, piece: str, after: str, size: int) -> None:
        with suppress(EnvFileError):
            read_env(before + piece * (size // len(piece)) + after)

    pieces = (
        " ",
        "\t",
        "\x0b",
        " #",
        "#",
        "'",
        '"',
        "\\",
        '\\"',
        "\\'",
        "A=1\n",
        "A='\n",
        "=\n",
        "\n",
        "\r",
        "export ",
        "=",
        "a",
    )
    for before in ("", "A=", "A=b", "A='", 'A="', "A", "'"):
        for piece in pieces:
            for after in ("", "b", "'", '"', "\n"):
                check_linear(partial(read, before, piece, after), 1_000)
