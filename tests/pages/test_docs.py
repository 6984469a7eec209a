import json
import subprocess
import sys
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from pages_world import OpenPage
from patience import WAIT
from processes import SharedServer

pytestmark = pytest.mark.server


def opened(hub: str, open_page: OpenPage, tool: str) -> Page:
    """The page with one of its tools."""
    page: Page = open_page(f"{hub}/docs#tool={tool}")
    expect(page.get_by_role("heading", name=tool, exact=True)).to_be_visible()
    return page


def test_tool_form_runs_and_updates_the_code_sample(hub: str, open_page: OpenPage) -> None:
    page = opened(hub, open_page, "add_numbers")
    form = page.get_by_role("form", name="Try add_numbers")
    form.get_by_role("spinbutton", name="a", exact=True).fill("19")
    form.get_by_role("spinbutton", name="b", exact=True).fill("23")
    form.get_by_role("button", name="Run").click()
    result, code = page.get_by_role("status", name="Result"), page.get_by_label("Code", exact=True)
    expect(result).to_contain_text("200")
    expect(result.get_by_label("Reply", exact=True)).to_contain_text("42")
    ran = [(name, code.inner_text()) for name in ("curl", "Python", "TypeScript") if chosen(page, name)]
    expect(result.get_by_label("Reply", exact=True)).to_contain_text("42")
    shell, program, script = (text for _, text in ran)
    for command in (["sh", "-c", shell], [sys.executable, "-c", program]):
        done = subprocess.run(command, check=True, capture_output=True, timeout=WAIT)
        assert json.loads(done.stdout) == 42
    # Without a type in it, TypeScript is JavaScript: the page itself runs it.
    asked = script.replace("console.log(await response.json())", "return await response.json()")
    assert page.evaluate(f"async () => {{ {asked} }}") == 42


def chosen(page: Page, language: str) -> bool:
    """Show the code in a language."""
    button = page.get_by_role("button", name=language, exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    return True


def test_tools_are_found_by_search_keys_and_links(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/docs")
    tools = page.get_by_role("listbox", name="Tools")
    expect(page.get_by_role("heading", name="How to call a tool")).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_label("Find a tool")).to_be_focused()
    page.keyboard.type("time zone")
    expect(tools.get_by_role("option")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="get_current_time")).to_be_visible()
    assert page.url.endswith("#tool=get_current_time")
    page.get_by_label("Find a tool").fill("no such words")
    expect(page.get_by_text("No tool matches")).to_be_visible()
    page.get_by_label("Find a tool").fill("")
    for link, text in (("tool-error", "but the tool failed"), ("tool=missing", "This server has no tool missing"),
                       ("problems-title", "When something is wrong")):  # fmt: skip
        page.evaluate("(link) => (location.hash = link)", link)
        expect(page.get_by_text(text)).to_be_in_viewport()
    page.go_back()
    page.go_back()
    page.go_back()
    expect(page.get_by_role("heading", name="get_current_time")).to_be_visible()


def test_schemas_are_readable(hub: str, open_page: OpenPage) -> None:
    page = opened(hub, open_page, "long_task")
    arguments = page.locator("details.section").filter(has=page.get_by_role("heading", name="Arguments"))
    expect(arguments.locator(".field").first).to_contain_text("integer, optional")
    arguments.get_by_text("JSON Schema").click()
    expect(arguments.get_by_label("Schema of the arguments")).to_contain_text('"properties"')
    page.get_by_role("heading", name="Errors").click()
    expect(page.get_by_role("row", name="409")).to_be_visible()


def test_reopened_tools_keep_their_state(hub: str, open_page: OpenPage) -> None:
    page = opened(hub, open_page, "greet")
    page.get_by_role("form", name="Try greet").get_by_label("name").fill("Ada")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("status", name="Result")).to_contain_text("Hello, Ada!")
    page.evaluate("location.hash = 'tool=add_numbers'")
    expect(page.get_by_role("heading", name="add_numbers", exact=True)).to_be_visible()
    chosen(page, "Python")
    page.evaluate("location.hash = 'tool=greet'")
    expect(page.get_by_role("form", name="Try greet").get_by_label("name")).to_have_value("Ada")
    expect(page.get_by_role("status", name="Result")).to_contain_text("Hello, Ada!")
    expect(page.get_by_role("button", name="Python", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_label("Code", exact=True)).to_contain_text("urlopen")


SAMPLES = """async () => {
  const { sample } = await import("./assets/schema/sample.js");
  const { validate } = await import("./assets/schema/validate.js");
  const root = await (await fetch("openapi.json")).json();
  return Object.values(root.paths).slice(0, 60).map(({ post }) => {
    const schema = { ...post.requestBody.content["application/json"].schema, components: root.components };
    const value = sample(schema);
    return [post.operationId, value ?? null, value === undefined ? "none" : validate(value, schema, schema)];
  });
}"""
TREE: dict[str, Any] = {
    "type": "object",
    "required": ["next"],
    "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]}},
}
HARD: list[tuple[dict[str, Any], Any]] = [
    ({"type": "string", "format": "date-time"}, "2026-03-14T09:30:00Z"),
    ({"type": "string", "minLength": 12, "maxLength": 14}, "texttexttext"),
    ({"type": "integer", "exclusiveMinimum": 4, "multipleOf": 3}, 6),
    ({"type": "number", "minimum": 0.2, "maximum": 0.4}, 0.2),
    ({"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "uniqueItems": True}, ["a", "b"]),
    ({"$ref": "#/$defs/tree", "$defs": {"tree": TREE}}, ...),
    ({"oneOf": [{"const": "all"}, {"type": "integer", "minimum": 9}]}, "all"),
    ({"type": "object", "additionalProperties": {"type": "number"}, "minProperties": 2}, {"name_1": 1, "name_2": 1}),
    ({"type": ["null", "string"], "minLength": 1}, "text"),
    ({"allOf": [{"type": "integer"}, {"minimum": 7}]}, 7),
]
SAMPLE = """async (schemas) => {
  const { sample } = await import("./assets/schema/sample.js");
  return schemas.map((schema) => sample(schema) ?? null);
}"""


def test_each_tool_has_sample_arguments_that_fit_its_schema(shared_crowd: SharedServer, open_page: OpenPage) -> None:
    page = open_page(f"http://127.0.0.1:{shared_crowd.port()}/docs#tool=place_order")
    form = page.get_by_role("form", name="Try place_order")
    code = page.get_by_label("Code", exact=True)
    for text in ('"customer": "Ada"', '"street": "1 Mill Lane"', '"sku": "A-100"'):
        expect(code).to_contain_text(text)
    form.get_by_label("customer").fill("Grace")
    expect(code).to_contain_text('"customer": "Grace"')
    form.get_by_role("button", name="Use sample values").click()
    form.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("status", name="Result")).to_contain_text("200")
    found = page.evaluate(SAMPLES)
    assert len(found) == 60
    assert [each for each in found if each[2]] == []
    made = page.evaluate(SAMPLE, [schema for schema, _ in HARD])
    assert None not in made
    assert [each for each, (_, wanted) in zip(made, HARD, strict=True) if wanted is not ... and each != wanted] == []
    page.goto(f"http://127.0.0.1:{shared_crowd.port()}/docs#tool=tool_001")
    expect(page.get_by_role("heading", name="tool_001", exact=True)).to_be_visible()
    assert page.locator("#detail .section").filter(has_text="number").count() == 1, "its fields are listed once"


def test_page_has_sections_for_resources_prompts_events_and_connection_setup(hub: str, open_page: OpenPage) -> None:
    page = open_page(f"{hub}/docs")
    expect(page.get_by_label("URL of the server")).to_have_text(f"{hub}/mcp")
    expect(page.get_by_role("link", name="How to connect each client")).to_have_attribute("href", "./")
    sections = page.get_by_role("navigation", name="Sections")
    for name, text in (
        ("Resources", "time://{area}/{city}"),
        ("Prompts", "language"),
        ("Events", "events?channel=news"),
    ):
        link = sections.get_by_role("link", name=name)
        link.click()
        expect(page.get_by_role("heading", name=name, exact=True)).to_be_in_viewport()
        expect(link).to_have_attribute("aria-current", "true")
        expect(page.locator(f"#{name.lower()}")).to_contain_text(text)
    page.get_by_role("list", name="Prompts").get_by_role("link", name="translate").click()
    expect(page.locator("#detail").get_by_role("heading", name="translate")).to_be_visible()
