"""Files with variables: what stands in them means the same to every command, and what others expect of such files."""

from pathlib import Path

import pytest

from millstream._app.serving.errors import CommandError
from millstream._cli.variables import read_file
from millstream._env_file import EnvFileError, read_env, read_env_file
from millstream.agent import ConfigurationError
from millstream.agent._configuration import Configuration


@pytest.mark.parametrize(("text", "value"), [
    ("A=b", "b"), ("A = b ", "b"), ("export A=b", "b"), ("\ufeffA=b", "b"), ("A=b\r\n", "b"), ("  A=b", "b"),
    ("A=", ""), ("A= # why", ""), ("A=b # why", "b"), ("A=b\t#why", "b"), ("A=b#c", "b#c"), ("A=#c", "#c"),
    ("A=b c", "b c"), ("A=it's", "it's"), ("A=b=c==", "b=c=="), ("A=$HOME/${X}", "$HOME/${X}"),
    ("A=C:\\new", "C:\\new"),
    ("A='b # c'", "b # c"), ("A='b' # why", "b"), ("A='b'#why", "b"), ("A=''", ""), (r"A='a\nb'", r"a\nb"),
    ('A="b # c"', "b # c"), (r'A="a\nb\tc"', "a\nb\tc"), (r'A="say \"hi\" \\ \$X"', 'say "hi" \\ $X'),
    ('A="it\'s"', "it's"),
    (r'A="C:\dir"', r"C:\dir"), ("A='one\ntwo'", "one\ntwo"), ('A="one\n# two\n"  # why', "one\n# two\n"),
    ("A=1\nA=2", "2"), ("# A=1\n\n \t\nA=2\n# end", "2"), ("A=1\u2028B=2", "1\u2028B=2"),
])  # fmt: skip
def test_an_entry_means_what_other_readers_of_such_files_take_it_for(text: str, value: str) -> None:
    """Our choice: where readers of other languages agree, so do we; nothing is expanded."""
    assert read_env(text) == {"A": value}


def test_a_key_of_several_lines_is_followed_by_the_next_entry() -> None:
    """As private keys are written."""
    key = "-----BEGIN KEY-----\nabc=\n-----END KEY-----\n"
    assert read_env(f'KEY="{key}"\nexport NEXT=1\n') == {"KEY": key, "NEXT": "1"}


@pytest.mark.parametrize(("text", "said"), [
    ("A=1\nnonsense\n", "Line 2 of .env isn't NAME=VALUE."), ("A='1\n2'\n\n=3", "Line 4 of .env isn't NAME=VALUE."),
    ("1A=2", "Line 1 of .env isn't NAME=VALUE."), ("A B=2", "Line 1 of .env isn't NAME=VALUE."),
    ("export A", "Line 1 of .env isn't NAME=VALUE."), ("A='b", "Line 1 of .env has a quote that isn't closed."),
    ('B=1\nA="b\nC=2', "Line 2 of .env has a quote that isn't closed."),
    ("A='b'c", "Line 1 of .env has something behind the closing quote."), ("A=b\0", "zero byte"),
])  # fmt: skip
def test_what_is_no_entry_is_named_by_its_line_and_never_shown(text: str, said: str) -> None:
    """It may be a secret."""
    with pytest.raises(EnvFileError, match=said.replace(".", r"\.")) as caught:
        read_env(text)
    assert "nonsense" not in str(caught.value)


def test_every_command_reads_a_file_in_the_same_way(tmp_path: Path) -> None:
    """A fixed defect: `run --env-file` and `chat --env-file` each had rules of their own for quotes."""
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
