import pytest

from cases import for_each
from scripts.size import script_size

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
