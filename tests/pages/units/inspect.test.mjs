// Logic of the inspector that no page shows by itself.

import assert from "node:assert/strict";
import { test } from "node:test";
import "./browser.mjs";

const assets = "../../../src/millstream/_web/assets";
const { at, judge, paths } = await import(`${assets}/inspect/checks.js`);
const links = await import(`${assets}/inspect/links.js`);
const { expand, variables } = await import(`${assets}/inspect/templates.js`);
const { costOf, totalCost } = await import(`${assets}/inspect/tokens.js`);
const { curl, pythonCode } = await import(`${assets}/inspect/exports.js`);
const { requestHeaders, wait } = await import(`${assets}/mcp/transports.js`);
const { Client } = await import(`${assets}/mcp/client.js`);
const { ask } = await import(`${assets}/inspect/questions.js`);

const result = { structuredContent: { total: 3, name: "Ada" }, content: [{ text: "three" }], empty: null };

test("a path leads to a value, and to undefined where there is none", () => {
  assert.equal(at(result, "content[0].text"), "three");
  assert.equal(at(result, "content.length"), 1);
  for (const path of ["content[1].text", "empty.more", "toString", "structuredContent.constructor"])
    assert.equal(at(result, path), undefined, path);
});

test("each relation of a check holds or doesn't", () => {
  const holds = [
    ["structuredContent.total", "equals", "3"],
    ["structuredContent.name", "equals", "Ada"],
    ["structuredContent", "equals", '{"total":3,"name":"Ada"}'],
    ["structuredContent.total", "differs", "4"],
    ["content", "contains", '{"text":"three"}'],
    ["content[0].text", "contains", "hre"],
    ["content[0].text", "matches", "^t.+e$"],
    ["structuredContent.total", "atLeast", "3"],
    ["structuredContent.total", "atMost", "3"],
    ["empty", "exists", ""],
    ["content[7]", "missing", ""]
  ];
  for (const [path, relation, value] of holds) assert.ok(judge({ path, relation, value }, result).good, relation);
  const fails = [
    ["structuredContent.total", "equals", "4"],
    ["structuredContent.total", "differs", "3"],
    ["content[0].text", "contains", "four"],
    ["content[0].text", "matches", "^x"],
    ["content[0].text", "atLeast", "1"],
    ["structuredContent.total", "atMost", "2"],
    ["content[7]", "exists", ""],
    ["empty", "missing", ""]
  ];
  for (const [path, relation, value] of fails) assert.ok(!judge({ path, relation, value }, result).good, relation);
});

test("a check with an invalid regular expression fails with its reason", () => {
  const { good, problem } = judge({ path: "content[0].text", relation: "matches", value: "(" }, result);
  assert.equal(good, false);
  assert.match(problem, /Invalid regular expression/);
});

test("suggested paths lead to primitive values and lengths", () => {
  assert.deepEqual(paths(result), [
    "structuredContent.total",
    "structuredContent.name",
    "content.length",
    "content[0].text",
    "empty"
  ]);
});

test("suggested paths are bounded in number and depth", () => {
  assert.equal(paths(Array.from({ length: 10_000 }, () => 1)).length, 150);
  let deep = 1;
  for (let level = 0; level < 1_000; level += 1) deep = { deep };
  assert.deepEqual(paths(deep), []);
});

test("a link carries an item and its values", () => {
  const hash = links.write("tools", "a + b & c", { text: "1 + 1 = 2 & more" });
  assert.deepEqual(links.read(hash), { kind: "tools", name: "a + b & c", values: { text: "1 + 1 = 2 & more" } });
  assert.deepEqual(links.read("#resource=shop://a+b"), { kind: "resources", name: "shop://a+b", values: null });
});

test("a link with broken values opens the item without any", () => {
  assert.deepEqual(links.read("#tool=greet&args=%7B"), { kind: "tools", name: "greet", values: null });
  assert.equal(links.read("#nothing"), null);
});

test("URI templates expand as in RFC 6570", () => {
  const values = { who: "Ada & Bob", path: "a/b", empty: "" };
  const expanded = {
    "shop://{who}": "shop://Ada%20%26%20Bob",
    "file:///{+path}": "file:///a/b",
    "shop://x{/path}": "shop://x/a%2Fb",
    "shop://x{?who,empty,path}": "shop://x?who=Ada%20%26%20Bob&path=a%2Fb",
    "shop://x?a=1{&path}": "shop://x?a=1&path=a%2Fb",
    "shop://x{#path}": "shop://x#a/b",
    "shop://x{;path}": "shop://x;path=a%2Fb",
    "shop://x{.path}": "shop://x.a%2Fb",
    "shop://x{?empty}": "shop://x"
  };
  for (const [template, uri] of Object.entries(expanded)) assert.equal(expand(template, values), uri);
});

test("each variable of a template is listed once, without modifiers", () => {
  assert.deepEqual(variables("shop://{who}{/path*}{?who,first:3}"), ["who", "path", "first"]);
});

test("the token cost of a tool counts characters beyond the BMP as one", () => {
  const cost = (description) => costOf({ name: "greet", description, inputSchema: { type: "object" } });
  assert.equal(cost("😀".repeat(40)) - cost(""), 10);
  assert.equal(totalCost([], "x".repeat(9)), 3);
});

test("arguments with x-mcp-header become headers, encoded if they aren't plain text", () => {
  const schema = {
    properties: {
      city: { type: "string", "x-mcp-header": "City" },
      place: { properties: { zip: { "x-mcp-header": "Zip" }, secret: {} } },
      gone: { "x-mcp-header": "Gone" }
    }
  };
  const given = { city: "Köln", place: { zip: 50667, secret: "s" }, gone: null };
  const headers = requestHeaders(
    "2026-07-28",
    { method: "tools/call", params: { name: "ship", arguments: given } },
    schema
  );
  assert.deepEqual(headers, {
    "mcp-protocol-version": "2026-07-28",
    "mcp-method": "tools/call",
    "mcp-name": "ship",
    "Mcp-Param-City": `=?base64?${Buffer.from("Köln").toString("base64")}?=`,
    "Mcp-Param-Zip": "50667"
  });
});

test("exported curl commands keep quotes inside of words", () => {
  const command = curl(
    "http://127.0.0.1/mcp",
    "tools/call",
    { name: "say", arguments: { text: "it's" } },
    { "X-A": "b" }
  );
  assert.match(command, /-H 'X-A: b'/);
  assert.ok(command.includes(`it'\\''s`));
});

test("exported Python has Python's literals", () => {
  const code = pythonCode(
    "http://127.0.0.1/mcp",
    "tools/call",
    { name: "f", arguments: { a: [true, null], b: {} } },
    {}
  );
  assert.ok(
    code.includes('"a": [\n                True,\n                None,\n            ],\n            "b": {},\n')
  );
});

test("a question of an unknown method is refused, even if every object has a member of that name", async () => {
  for (const method of ["constructor", "toString", "server/unknown"])
    await assert.rejects(ask(method, {}), { code: -32601 }, method);
});

test("a wait leaves nothing at its signal, and ends with it", async () => {
  const { signal } = new AbortController();
  const listeners = new Set();
  signal.addEventListener = (_, listener) => listeners.add(listener);
  signal.removeEventListener = (_, listener) => listeners.delete(listener);
  await wait(0, signal);
  assert.equal(listeners.size, 0);
  const stop = new AbortController();
  const waiting = wait(60_000, stop.signal);
  stop.abort(new Error("Stopped."));
  await assert.rejects(waiting, { message: "Stopped." });
});

test("the first notification of a session names the revision that the server chose", async () => {
  const sent = [];
  let receive;
  const transport = (on) => {
    receive = on.got;
    return { replies: false, session: "", open: async () => {}, listen: () => new Promise(() => {}), send };
  };
  const send = async (message, headers) => {
    sent.push([message.method, headers]);
    if (message.method === "initialize")
      receive({ id: message.id, result: { protocolVersion: "2025-06-18", capabilities: {} } }, {});
  };
  const ignore = () => {};
  const client = new Client(transport, "2025-11-25", {}, { sent: ignore, got: ignore, failed: ignore, lost: ignore });
  await client.open();
  assert.deepEqual(sent, [
    ["initialize", {}],
    ["notifications/initialized", { "mcp-protocol-version": "2025-06-18" }]
  ]);
});

test("keep-alives aren't progress of a call", async () => {
  const transport = ({ got }) => ({
    open: async () => {},
    send: async ({ id }) => {
      const step = (progress, _meta) =>
        got({ method: "notifications/progress", params: { progressToken: id, progress, _meta } }, {});
      step(1);
      step(1.000001, { "millstream.server/keep-alive": true });
      step(2, {});
      got({ id, result: {} }, {});
    }
  });
  const ignore = () => {};
  const client = new Client(
    transport,
    "2025-11-25",
    {},
    { sent: ignore, got: ignore, failed: ignore, notified: ignore }
  );
  const shown = [];
  await client.request("tools/call", { name: "work" }, { progress: ({ progress }) => shown.push(progress) });
  assert.deepEqual(shown, [1, 2]);
});
