// Logic that several pages share.

import assert from "node:assert/strict";
import { test } from "node:test";
import "./browser.mjs";

const assets = "../../../src/millstream/_web/assets";
const { count, duration, figure, labelOf } = await import(`${assets}/dom.js`);
const { groupItems, tagsOf, withHeads } = await import(`${assets}/shell/long-list.js`);
const { labelsOf, shortNames } = await import(`${assets}/shell/names.js`);
const { idOf } = await import(`${assets}/inspect/links.js`);
const { rankMatch } = await import(`${assets}/shell/palette.js`);
const { nodes, rowsOf } = await import(`${assets}/render/content.js`);
const { parseTraceback } = await import(`${assets}/render/content.js`);
const { present } = await import(`${assets}/schema/resolve.js`);
const { withoutSecrets } = await import(`${assets}/schema/controls.js`);
const { clients, shortName } = await import(`${assets}/connect/clients.js`);

const named = (...names) => names.map((name) => ({ name }));
const nameOf = ({ name }) => name;

test("figures have about three significant digits, and durations their two largest units", () => {
  assert.deepEqual(
    [figure(0), figure(1.234), figure(12.34), figure(1234.5)],
    ["0", (1.23).toLocaleString(), (12.3).toLocaleString(), (1235).toLocaleString()]
  );
  assert.equal(figure(null), "–");
  assert.equal(count(99_999), (99_999).toLocaleString());
  assert.deepEqual([duration(0.4), duration(61), duration(90_061)], ["0 s", "1 min 1 s", "1 d 1 h"]);
});

test("a title that only repeats the name isn't the label", () => {
  assert.equal(labelOf({ name: "get_order", title: "Get order" }), "get_order");
  assert.equal(labelOf({ name: "get_order", title: "Look up an order" }), "Look up an order");
});

test("long lists are grouped by prefix, and single names go under Other", () => {
  const shop = ["shop_a", "shop_b", "shop_c", "shop_d", "shop_e", "shop_f"];
  const mail = ["mail_a", "mail_b", "mail_c", "mail_d", "mail_e"];
  const groups = groupItems(named(...shop, ...mail, "single_one"), nameOf);
  assert.deepEqual(
    [...groups].map(([name, items]) => [name, items.length]),
    [
      ["mail", 5],
      ["shop", 6],
      ["Other", 1]
    ]
  );
  assert.equal(groupItems(named(...shop), nameOf), null);
});

test("names that begin with a verb are grouped by what they are about", () => {
  const verbs = ["get", "list", "create", "update", "delete"];
  const names = [
    ...verbs.map((verb) => `${verb}_issue`),
    ...verbs.map((verb) => `${verb}Status`),
    "list_issues",
    "run"
  ];
  const found = [...groupItems(named(...names), nameOf)].map(([name, items]) => [name, items.length]);
  assert.deepEqual(found, [
    ["issue", 6],
    ["status", 5],
    ["Other", 1]
  ]);
});

test("the group of the current item starts open in a list that starts closed", () => {
  const groups = new Map([
    ["one", named(..."abcdefghij")],
    ["many", Array.from({ length: 60 }, (_, at) => ({ name: `m${at}` }))]
  ]);
  const [current] = groups.get("one");
  const rows = withHeads(groups, new Map(), { current });
  assert.deepEqual(
    rows.filter((row) => "group" in row).map(({ closed }) => closed),
    [false, true]
  );
  assert.equal(rows.length, 12);
});

test("tags are read from any key of _meta that holds texts", () => {
  assert.deepEqual(tagsOf({ _meta: { "example.com/tags": ["a"] } }), ["a"]);
  assert.deepEqual(tagsOf({ _meta: { fastmcp: { tags: ["b"] } } }), ["b"]);
  assert.deepEqual(tagsOf({ _meta: { tags: [1] } }), []);
});

test("the palette prefers beginnings, then words, then letters in order", () => {
  const ranks = ["run all", "all run", "overrun", "r-u-n"].map((text) => rankMatch(text, "run"));
  assert.deepEqual(
    [...ranks].sort((one, other) => one - other),
    ranks
  );
  assert.equal(rankMatch("nur", "run"), null);
});

test("a table is made of lists of objects only", () => {
  assert.equal(rowsOf({ items: [{ a: 1 }, { b: 2 }] }).length, 2);
  for (const value of [[{ a: 1 }], [{ a: 1 }, 2], { a: [{ x: 1 }, { x: 2 }], b: 1 }, [{}, {}], null])
    assert.equal(rowsOf(value), null);
});

test("a traceback ends with the last place and the exception", () => {
  const text =
    'Traceback (most recent call last):\n  File "a.py", line 3, in f\n    g()\n  File "b.py", line 7, in g\n    1 / 0\nZeroDivisionError: division by zero\n';
  assert.deepEqual(parseTraceback(text), {
    raised: "ZeroDivisionError: division by zero",
    file: "b.py",
    line: 7,
    where: "g",
    code: "1 / 0"
  });
  assert.equal(parseTraceback("no traceback"), null);
});

test("allOf is merged, and the own keywords win", () => {
  const schema = {
    title: "Own",
    properties: { a: { type: "string" } },
    required: ["a"],
    allOf: [{ $ref: "#/$defs/b" }, { title: "Other", required: ["c"], properties: { a: { type: "number" }, c: {} } }],
    $defs: { b: { properties: { b: { type: "integer" } }, required: ["b"] } }
  };
  const { title, type, properties, required } = present(schema, schema);
  assert.deepEqual([title, type], ["Own", "object"]);
  assert.deepEqual(properties, { a: { type: "string" }, b: { type: "integer" }, c: {} });
  assert.deepEqual([...required].sort(), ["a", "b", "c"]);
});

test("a null alternative becomes nullable, and circular references end", () => {
  const optional = present({ anyOf: [{ type: "integer" }, { type: "null" }], title: "Count" }, {});
  assert.deepEqual([optional.type, optional.nullable, optional.title], ["integer", true, "Count"]);
  const loop = { $ref: "#/$defs/a", $defs: { a: { $ref: "#/$defs/b" }, b: { $ref: "#/$defs/a" } } };
  assert.equal(typeof present(loop, loop), "object");
});

test("secrets are removed by name and by schema, also in lists and alternatives", () => {
  const schema = {
    properties: {
      word: { anyOf: [{ type: "null" }, { type: "string", format: "password" }] },
      users: { type: "array", items: { properties: { pin: { writeOnly: true } } } }
    }
  };
  const values = { word: "x", api_key: "y", users: [{ pin: "1", name: "Ada" }], max_tokens: 5 };
  assert.deepEqual(withoutSecrets(values, schema), { users: [{ name: "Ada" }], max_tokens: 5 });
});

test("names of servers fit all clients, and words fit a shell", () => {
  assert.equal(shortName(" Ada's Shöp! "), "ada-s-sh-p");
  assert.equal(shortName("店"), "server");
  const tool = { name: "it's", inputSchema: { required: ["n"], properties: { n: { type: "integer" } } } };
  const given = { name: "shop", url: "http://127.0.0.1/mcp?a=1&b", keys: true, oauth: false, near: true, tool };
  const terminal = clients(given).find(({ id }) => id === "terminal");
  assert.equal(
    terminal.steps.at(-1).code,
    `millstream call 'http://127.0.0.1/mcp?a=1&b' 'it'\\''s' n=1 --auth "$MCP_SERVER_AUTH_KEY"`
  );
});

test("a server that takes keys only gets no ChatGPT steps without a warning", () => {
  const given = { name: "shop", url: "https://shop.example/mcp", keys: true, oauth: false, near: false, tool: null };
  const steps = clients(given).find(({ id }) => id === "chatgpt").steps;
  assert.ok(steps.some(({ warn }) => warn));
});

test("content of an unknown type is shown as JSON, even if every object has a member of that name", () => {
  for (const type of ["constructor", "toString", "video"]) assert.equal(nodes({ type, text: "Hello" }).length, 1, type);
});

/** Return what a list shows of names: "…" for what's left out in the middle. */
const shownOf = (names, group) =>
  shortNames(names, group).map((nodes) =>
    nodes()
      .filter((each) => each && each.className !== "left-out said")
      .map((each) => (each.className === "shown" ? each.textContent : "…"))
      .join("")
      .replace(/…+/g, "…")
  );

test("long names are shortened where others have the same words, and stay whole in the document", () => {
  const names = ["red", "blue"].flatMap((color) =>
    ["north", "south"].map((side) => `synchronize_the_${color}_ledger_with_the_accounting_of_the_${side}_region`)
  );
  assert.equal(shownOf(names)[0], "synchronize_the_red_ledger_with…_north…");
  assert.equal(new Set(shownOf(names)).size, 4);
  const whole = shortNames(names)[0]().map((each) => each?.textContent ?? each);
  assert.equal(whole.join(""), names[0]);
  const plain = Array.from({ length: 30 }, (_, at) => `${"x".repeat(60)}${at}${"y".repeat(20)}`);
  assert.equal(new Set(shownOf(plain)).size, 30);
  assert.deepEqual(shownOf(["short", "shorter"]), ["short", "shorter"]);
});

test("names leave out what the heading of their group says", () => {
  assert.deepEqual(shownOf(["my_shop_order", "MyShop: buy", "my_shop", "my_shopper"], "my-shop"), [
    "order",
    "buy",
    "my_shop",
    "my_shopper"
  ]);
});

test("names in other scripts stay, and a name that only repeats the heading", () => {
  const names = ["Mail öffnen", "Mail 検索", "Mail Удалить", "Mail…", "Mail 🔍", "mail_हिन्दी"];
  assert.deepEqual(shownOf(names, "mail"), ["öffnen", "検索", "Удалить", "Mail…", "Mail 🔍", "हिन्दी"]);
});

test("thousands of long names and headings are shortened", () => {
  const names = Array.from({ length: 2000 }, (_, at) => "word ".repeat(at + 1));
  assert.equal(shortNames(names, "word ".repeat(50_000)).length, 2000);
});

test("members of tools that only resources have don't identify them", () => {
  assert.equal(idOf("tools", { name: "read", uri: "transfer" }), "read");
  assert.equal(idOf("templates", { name: "read", uriTemplate: "shop://{id}" }), "shop://{id}");
});

test("names follow equal titles, and URIs equal names of resources", () => {
  const tools = [{ name: "a_list", title: "All issues" }, { name: "b_list", title: "All issues" }, { name: "c" }];
  assert.deepEqual(
    [...labelsOf(tools, (item) => idOf("tools", item)).values()],
    ["All issues · a_list", "All issues · b_list", "c"]
  );
  const resources = ["shop", "crm"].map((host) => ({ name: "counter", uri: `counter://${host}` }));
  const uriOf = (item) => idOf("resources", item);
  assert.deepEqual([...labelsOf(resources, uriOf).values()], ["counter · counter://shop", "counter · counter://crm"]);
});

test("a name that begins others is in their group, and items behind a gateway are grouped by upstream", () => {
  const names = ["ask", "ask_name", "ask_url", ..."abcdefghij"].map((name, at) => (at < 3 ? name : `run_${name}`));
  assert.deepEqual([...groupItems(named(...names), nameOf)].find(([group]) => group === "ask")[1].map(nameOf), [
    "ask",
    "ask_name",
    "ask_url"
  ]);
  assert.deepEqual(tagsOf({ _meta: { "millstream.gateway/upstream": ["shop", "inner"], tags: ["x"] } }), ["shop"]);
  assert.deepEqual(tagsOf({ _meta: { "millstream.gateway/upstream": [5], tags: ["x"] } }), ["x"]);
});
