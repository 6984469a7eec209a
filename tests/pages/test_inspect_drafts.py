import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from millstream._protocol.redaction import _SECRET_NAME
from pages_world import OpenPage
from processes import SharedServer, free_port, run_command, run_server, share_server

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def shared_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """`secret_shop.py`, with the pages."""

    def command(port: int) -> list[str]:
        return run_command(str(Path(__file__).parent / "secret_shop.py"), port, "--serve", "web")

    with share_server(command, tmp_path_factory.mktemp("shop")) as server:
        yield server


@pytest.fixture
def page(shared_shop: SharedServer, open_page: OpenPage) -> Page:
    """The inspector, connected."""
    return connected(open_page(f"http://127.0.0.1:{shared_shop.port()}/inspect"))


def connected(page: Page) -> Page:
    """The page, when its lists are there."""
    expect(page.locator("#state")).to_have_text("Connected")
    return page


def opened(page: Page, name: str) -> None:
    """Open a thing with the keyboard alone, from wherever the focus is."""
    page.keyboard.press("Control+k")
    page.keyboard.insert_text(name)
    page.keyboard.press("Enter")
    expect(page.locator("#detail").get_by_role("heading", name=name)).to_be_visible()


def tabbed(page: Page, node: Locator) -> Locator:
    """Press Tab until the focus is there."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if node.evaluate("node => node === document.activeElement"):
            return node
    raise AssertionError(f"Tab doesn't lead to {node}")


def outcome(page: Page) -> Locator:
    """The text of the result."""
    return page.get_by_role("region", name="Result").get_by_label("Text", exact=True)


def test_reopened_tools_keep_typed_values(page: Page) -> None:
    opened(page, "order")
    tabbed(page, page.get_by_role("button", name="Add item"))
    page.keyboard.press("Enter")
    page.keyboard.insert_text("lamp")
    tabbed(page, page.locator("#argument-1"))
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("8")
    tabbed(page, page.locator("#argument-2"))
    page.keyboard.insert_text("two\nlines")
    opened(page, "other")
    opened(page, "letter")  # another kind
    opened(page, "order")
    expect(page.get_by_role("textbox", name="sku")).to_have_value("lamp")
    expect(page.locator("#argument-1")).to_have_value("8")
    expect(page.locator("#argument-2")).to_have_value("two\nlines")
    tabbed(page, page.get_by_role("button", name="JSON", exact=True))
    page.keyboard.press("Enter")
    editor = page.get_by_label("Arguments as JSON")
    editor.fill('{"lines": [')  # half a value
    opened(page, "other")
    opened(page, "order")
    expect(editor).to_have_value('{"lines": [')


def test_forms_can_be_reset(page: Page) -> None:
    opened(page, "order")
    tabbed(page, page.locator("#argument-1"))
    page.keyboard.press("Control+a")
    page.keyboard.insert_text("8")
    tabbed(page, page.get_by_role("button", name="Reset"))
    page.keyboard.press("Enter")
    expect(page.locator("#argument-1")).to_have_value("3")
    assert page.evaluate("document.activeElement.closest('#detail form') !== null")
    opened(page, "other")
    opened(page, "order")
    expect(page.locator("#argument-1")).to_have_value("3")


def test_reloaded_pages_restore_the_last_arguments(page: Page) -> None:
    opened(page, "other")
    tabbed(page, page.get_by_role("textbox", name="text"))
    page.keyboard.insert_text("once more")
    page.keyboard.press("Enter")
    expect(outcome(page)).to_have_text("once more")
    page.keyboard.insert_text(", not sent")
    page.reload()
    connected(page)
    opened(page, "other")
    expect(page.get_by_role("textbox", name="text")).to_have_value("once more")


def test_secrets_are_kept_only_while_the_page_is_open(page: Page) -> None:
    opened(page, "sign_in")
    account = page.get_by_role("group", name="account")
    tabbed(page, account.get_by_label("user"))
    page.keyboard.insert_text("ada")
    tabbed(page, account.get_by_label("password"))
    page.keyboard.insert_text("a-secret-word")
    code = tabbed(page, page.get_by_label("code"))
    page.keyboard.insert_text("hidden-code")
    expect(code).to_have_attribute("type", "password")
    page.keyboard.press("Enter")
    expect(outcome(page)).to_have_text("ada 13 11 ")
    opened(page, "other")
    opened(page, "sign_in")
    expect(account.get_by_label("password")).to_have_value("a-secret-word")
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, location.href, history.state])")
    assert "ada" in stored
    assert re.findall("secret-word|hidden-code", stored) == []
    page.reload()
    connected(page)
    opened(page, "sign_in")
    expect(account.get_by_label("user")).to_have_value("ada")
    expect(account.get_by_label("password")).to_have_value("")
    expect(page.get_by_label("code")).to_have_value("")


SHAPES = """async () => {
  const {withoutSecrets} = await import(`${new URL("assets/schema/controls.js", document.baseURI)}`);
  const secret = {type: "string", format: "password"};
  const node = {properties: {pin: secret, next: {$ref: "#/$defs/node"}}};
  const root = {$defs: {node: {anyOf: [{$ref: "#/$defs/node"}, node]}}};
  return [
    withoutSecrets({apiKey: "x", tokens: 5, max_tokens: 6, access_token: "y", ok: true}),
    withoutSecrets({pins: ["1", "2"], pair: ["a", "b"]},
      {properties: {pins: {type: "array", items: secret}, pair: {prefixItems: [{}, secret]}}}),
    withoutSecrets({a: {pin: "1", next: {pin: "2", name: "n"}}}, {...root, properties: {a: {$ref: "#/$defs/node"}}}),
    withoutSecrets({maybe: "x", any: {key: null, word: "y"}},
      {properties: {maybe: {anyOf: [secret, {type: "null"}]}, any: {additionalProperties: true}}}),
    withoutSecrets({map: {a: "x"}}, {properties: {map: {additionalProperties: {type: "string", writeOnly: true}}}}),
    withoutSecrets({plain: "x"}, {properties: {plain: true}}),
  ];
}"""


def test_secrets_are_recognized_in_values_of_every_shape(page: Page) -> None:
    assert page.evaluate(SHAPES) == [
        {"tokens": 5, "max_tokens": 6, "ok": True},
        {"pins": [], "pair": ["a"]},
        {"a": {"next": {"name": "n"}}},
        {"any": {"key": None, "word": "y"}},
        {"map": {}},
        {"plain": "x"},
    ]


def test_page_and_log_use_the_same_secret_names() -> None:
    text = Path("src/millstream/_web/assets/schema/controls.js").read_text()
    assert f"/{_SECRET_NAME.pattern}/" in text


def test_changed_tools_keep_matching_values(open_page: OpenPage, tmp_path: Path) -> None:
    program, port = tmp_path / "changing.py", free_port()
    command = run_command(str(program), port, "--serve", "web")
    server = "from millstream import Server\nmcp = Server('changing')\n@mcp.tool\ndef add({}) -> str:\n    return 'x'\n"
    program.write_text(server.format("word: str, gone: str = ''"))
    with run_server(command, port, tmp_path / "first"):
        page = connected(open_page(f"http://127.0.0.1:{port}/inspect", lossy=True))
        page.get_by_label("word").fill("kept")
        page.get_by_label("gone").fill("lost")
    program.write_text(server.format("word: str, more: int = 7"))
    with run_server(command, port, tmp_path / "second"):
        expect(page.get_by_label("more")).to_be_visible()
        expect(page.get_by_label("word")).to_have_value("kept")
        expect(page.get_by_label("gone")).to_have_count(0)
