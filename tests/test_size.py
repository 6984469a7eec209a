import pytest

from cases import for_each
from scripts.size import (
    ROWS,
    TOTALS,
    UNLISTED,
    find_row,
    format_table,
    measure,
    read_files,
    read_revision,
    script_size,
)

pytestmark = pytest.mark.check


@for_each(
    "text, tokens",
    [
        ("``", 1),
        ("`a`", 1),
        ("`a${b}c`", 3),
        ("`${b}`", 3),
        ("`${a}${b}`", 5),
        ("`a${f(b, 1)}c` + d", 10),
        ("`a${`b${c}d`}e`", 5),
        ("`${{a: 1}.a}`", 9),
        ("`${() => { return `}`; }}`", 10),
        (r"`\`${a}\${b}$`", 3),
        ("`// ${a} /* ${b} */`", 5),
        ("`a${b // the ` of c }\n}`", 3),
        ("`a${/* } ` */ b}`", 3),
        ("`'${a}\"`", 3),
        ("a // `\nb", 2),
        ("/* ` */ a /* ` */ b", 2),
        ("'`' + \"`\"", 3),
        ("'//' + a", 3),
        (r"'it\'s' + a", 3),
    ],
)
def test_texts_of_template_literals_are_tokens_and_expressions_count(text: str, tokens: int) -> None:
    assert script_size(text).tokens == tokens


@for_each(
    "text, tokens",
    [
        ("a = /`/.test(b) + `c`", 10),
        ("a = /['\"`]/g", 3),
        (r"f(/\/`/, /[/`]/)", 6),
        ("`${/`}/.test(a)}`", 8),
        ("return /'/", 2),
        ("x.return / 2 / y", 7),
        ("if (a) /'/.test(b)", 10),
        ("{ a } /'/.test(b)", 9),
        ("a / b / c", 5),
        ("(a) / b / '`'", 7),
        ("a[0] / b / '`'", 8),
        ("i++ / b / '`'", 6),
        ("`a` / b / '`'", 5),
        ("1e-3 / .5 / 0xE", 5),
        ("a /= b", 3),
        ("a = b\n/ c", 5),
    ],
)
def test_slashes_divide_after_values_and_begin_regular_expressions_elsewhere(text: str, tokens: int) -> None:
    assert script_size(text).tokens == tokens


def test_lines_without_tokens_do_not_count() -> None:
    size = script_size("// a comment\n\nconst a = () => 1;\n/* two\nlines */\nfunction b() {}\n")
    assert (size.lines, size.functions) == (2, 2)


def test_each_file_has_a_row() -> None:
    missing = [path for path in read_files() if find_row(path) == UNLISTED]
    assert not missing, f"Add these paths to the rows of ROWS in scripts/size.py that they serve: {' '.join(missing)}"


def test_each_path_is_on_one_row() -> None:
    paths = [path for row in ROWS.values() for path in row.split()]
    assert sorted(paths) == sorted(set(paths))


def test_scripts_have_rows_of_their_own() -> None:
    assert not [path for path in read_files() if find_row(path).startswith("JavaScript: ") is path.endswith(".py")]


def test_files_leave_the_row_of_their_folder() -> None:
    assert find_row("auth/_tokens.py") != find_row("auth/_authorization_server/users.py") != UNLISTED
    assert find_row("auth/_authorization_server/new.py") == find_row("auth/_authorization_server/users.py")
    assert find_row("_server/new.py") == UNLISTED


def test_totals_add_up_the_rows() -> None:
    sizes = measure({"hub/_hub.py": "a = 1\n", "_limits.py": "def b(): ...\n", "_web/assets/dom.js": "c = 2;"})
    assert [sizes[name].tokens for name in TOTALS.values()] == [3 + 6, 4]


def test_a_comparison_shows_the_rows_that_grow_shrink_begin_and_end() -> None:
    before = measure(
        {"hub/_hub.py": "a = 1\n", "_limits.py": "a = 1\n", "compat/types.py": "a = 1\n", "files.py": "a\n"}
    )
    after = measure({"hub/_hub.py": "a = 1 + 1\n", "_limits.py": "a\n", "_cli/run.py": "a = 1\n", "files.py": "b\n"})
    rows = {line.rpartition("  ")[2]: line.split()[1] for line in list(format_table(after, before))[1:]}
    assert rows == {
        "hub": "+2",
        "limits and quotas": "-2",
        "command line": "+3",
        "compatibility with SDK 1.x": "-3",
        "Python in all": "+0",
        "JavaScript in all": "+0",
    }


def test_revisions_have_the_same_paths_as_the_work_tree() -> None:
    found = read_revision("HEAD")
    assert "def " in found["hub/_hub.py"]
    assert "_web/assets/dom.js" in found
    assert not any("vendor" in path for path in found)
