// What a hostile server sends, such as a recursive schema or a very long line, doesn't freeze a page.

import assert from "node:assert/strict";
import { test } from "node:test";
import "./browser.mjs";

const assets = "../../../src/millstream/_web/assets";
const { pretty } = await import(`${assets}/dom.js`);
const { judge, paths } = await import(`${assets}/inspect/checks.js`);
const { expand, variables } = await import(`${assets}/inspect/templates.js`);
const { Client } = await import(`${assets}/mcp/client.js`);
const { looksLikeMarkdown } = await import(`${assets}/render/markdown.js`);
const { present } = await import(`${assets}/schema/resolve.js`);
const { sample } = await import(`${assets}/schema/sample.js`);
const { validate } = await import(`${assets}/schema/validate.js`);
const { groupItems } = await import(`${assets}/shell/long-list.js`);
const { Parser } = await import(`${assets}/hub.js`);

/** Return a schema that refers to itself, with the definition that `make` returns for the reference. */
const recursive = (make) => ({ $ref: "#/$defs/N", $defs: { N: make({ $ref: "#/$defs/N" }) } });
const range = (length, make) => Array.from({ length }, (_, index) => make(index));
const properties = (reference) => Object.fromEntries(range(12, (index) => [`p${index}`, reference]));

const HOSTILE = {
  properties: recursive((reference) => ({ type: "object", properties: properties(reference) })),
  required: recursive((reference) => ({
    type: "object",
    properties: properties(reference),
    required: Object.keys(properties(reference))
  })),
  tuples: recursive((reference) => ({ type: "array", prefixItems: range(12, () => reference) })),
  alternatives: recursive((reference) => ({
    anyOf: range(12, (index) => ({
      type: "object",
      required: ["a", "b"],
      properties: { a: reference, b: { const: index } }
    }))
  })),
  parts: {
    $ref: "#/$defs/a0",
    $defs: Object.fromEntries(
      range(30, (index) => [`a${index}`, { allOf: range(2, () => ({ $ref: `#/$defs/a${index + 1}` })) }])
    )
  }
};

for (const [name, schema] of Object.entries(HOSTILE))
  test(`schemas with recursive ${name} take bounded time`, { timeout: 20_000 }, () => {
    sample(schema);
    validate({}, schema);
    present(schema, schema);
  });

test("a value is validated in little time, and its first problem is found", { timeout: 20_000 }, () => {
  const names = range(3_000, (index) => `b${index}`);
  const values = Object.fromEntries(names.map((name) => [name, 1]));
  const patterns = Object.fromEntries(range(500, (index) => [`^a${index}$`, false]));
  assert.deepEqual(validate(values, { patternProperties: { ...patterns, "^b0$": false } })[0].path, ["b0"]);
  const lists = range(6_000, (index) => [index]);
  assert.equal(validate([...lists, 1], { items: { enum: [...lists, 0] } }).length <= 1, true);
  assert.equal(validate(lists, { enum: lists })[0].keyword, "enum");
  validate(
    range(9_000, () => "a"),
    { items: { pattern: `^${"(b)".repeat(9_000)}$` } }
  );
});

test("patterns of checks that could freeze the tab are refused with a reason", { timeout: 20_000 }, () => {
  const refusal = (value, count) =>
    judge({ path: "", relation: "matches", value }, `${"a".repeat(count)}!`).problem ?? value;
  for (const value of ["^(a+)+$", "(a|a)*b", "^(a|aa)+$", "(?=(a+)+b)", "(a+)+\\1b"])
    assert.match(refusal(value, 26), /could take too long for 27 characters/);
  for (const value of ["a+b", "a+$", "(.*)x"]) assert.match(refusal(value, 50_000), /could take too long for 50,001/);
  const short = "Total: 12 books, 3 mugs";
  for (const value of ["\\d+ books", "^Total", "^Total: (\\d+) books", "mugs$", "[a-z]+, \\d", "^.*mugs$"])
    assert.deepEqual(judge({ path: "", relation: "matches", value }, short), { good: true, found: short }, value);
  assert.equal(judge({ path: "", relation: "matches", value: "^a+!$" }, `${"a".repeat(50_000)}!`).good, true);
});

test("a long line in small chunks takes linear time", { timeout: 20_000 }, () => {
  const parser = new Parser();
  for (let count = 0; count < 200_000; count += 1) assert.equal([...parser.feed("data: some more text")].length, 0);
  assert.equal([...parser.feed("\n\n")].length, 1);
});

test("line ends may be split between chunks", () => {
  const text = "data: a\r\ndata: b\r\rid: 7\ndata: c\r\n\r\n";
  const whole = [...new Parser().feed(text)];
  assert.deepEqual(
    whole.map(({ data, id }) => [data, id]),
    [
      ["a\nb", ""],
      ["c", "7"]
    ]
  );
  const parser = new Parser();
  assert.deepEqual(
    [...text].flatMap((letter) => [...parser.feed(letter)]),
    whole
  );
});

test("text is recognized as Markdown in linear time", { timeout: 20_000 }, () => {
  for (const piece of ["[", "![", "([", "**a", "|-", "- ", "`"]) looksLikeMarkdown(piece.repeat(300_000));
  assert.equal(looksLikeMarkdown("See [the guide](https://example.com)."), true);
  assert.equal(looksLikeMarkdown("a[0] = b[1](https)"), false);
});

test("deeply nested JSON is shown in about its length", () => {
  const levels = 4_000;
  for (const text of [`${"[".repeat(levels)}${"]".repeat(levels)}`, `${'{"a":'.repeat(levels)}1${"}".repeat(levels)}`])
    assert.equal(pretty([0, JSON.parse(text)]), `[0,${text}]`);
  const wide = JSON.parse(`${"[".repeat(40)}1,2${"]".repeat(40)}`);
  assert.match(pretty(wide), /^\[\n {2}\[\n {4}/);
  assert.equal(pretty({ a: [] }), '{\n  "a": []\n}');
});

test("long lists are grouped in linear time", { timeout: 20_000 }, () => {
  const names = range(100_000, (index) => (index % 2 ? "get_order" : `get_item${index}`));
  const groups = groupItems(names, (name) => name);
  assert.deepEqual(
    [...groups].map(([group, items]) => [group, items.length]),
    [
      ["order", 50_000],
      ["Other", 50_000]
    ]
  );
});

test("paths of a result take linear time", { timeout: 20_000 }, () => {
  const name = "k".repeat(400_000);
  assert.deepEqual(paths({ [name]: range(40_000, () => ({})) }), [`${name}.length`]);
  const deep = { a: { b: [{ c: { d: { e: { f: { g: { h: 1 } } } } } }], "x.y": 2 } };
  assert.deepEqual(paths(deep), ["a.b.length", "a.x.y"]);
});

test("templates without an end take linear time", { timeout: 20_000 }, () => {
  for (const piece of ["{", "{a", "{?a,", "{+", "{a,a", "{*", "}{"]) {
    const text = piece.repeat(150_000);
    assert.deepEqual([variables(text), expand(text, { a: "b" })], [[], text], piece);
  }
  assert.equal(expand("{{a}", { a: "b" }), "{b");
});

test("lists that don't end fail", async () => {
  let pages = 0;
  const request = async () => ({ tools: [{ name: "a" }], nextCursor: String(++pages) });
  await assert.rejects(Client.prototype.list.call({ request }, "tools/list", "tools"), /more than 1000 pages/);
  const last = async (_, { cursor }) => ({ tools: [{ name: "a" }, {}], nextCursor: cursor ? "" : "next" });
  const found = await Client.prototype.list.call({ request: last }, "tools/list", "tools");
  assert.deepEqual(
    found.map(({ name }) => name),
    ["a", "a"]
  );
});
