// The inspector: a client of this server in the page. It lists what there is, makes a form of each thing, runs it, and
// shows every message.

import { bench, cease, say } from "./bench.js";
import { contents, nodes } from "./content.js";
import { $, element, pretty } from "./dom.js";
import { collect, complain, fields } from "./forms.js";
import { Client, REVISIONS, RpcError, knock, wait } from "./mcp.js";
import { ask } from "./questions.js";
import { events } from "./sse.js";
import { record } from "./traffic.js";
import { complete, expand, variables } from "./templates.js";

const WAITS_MS = [500, 1_000, 2_000, 4_000];
const LEVELS = ["", "debug", "info", "notice", "warning", "error"];
const KINDS = {
  tools: { title: "Tools", needs: "tools", load: () => client.list("tools/list", "tools"), show: showTool, none: "Register a function with @mcp.tool." },
  resources: { title: "Resources", needs: "resources", load: loadResources, show: showResource, none: "Register a function with @mcp.resource." },
  prompts: { title: "Prompts", needs: "prompts", load: () => client.list("prompts/list", "prompts"), show: showPrompt, none: "Register a function with @mcp.prompt." },
  request: { title: "Request", load: async () => [{ name: "Any request", description: "A method and its parameters as JSON" }], show: showRequest, none: "" },
};
const CHANGED = { "notifications/tools/list_changed": "tools", "notifications/prompts/list_changed": "prompts", "notifications/resources/list_changed": "resources" };

let endpoint = "mcp";
let client = null;
let opening = null; // the attempt to connect that is under way
let failures = 0;
let server = {}; // what the server said about itself when we last connected
let kind = "tools";
const offered = {};
const chosen = {};
const watched = new Map(); // uri -> what to do when it changed

// Connecting

function state(text, look = "") {
  $("state").textContent = text;
  $("state").className = `badge state ${look}`;
}

function facts() {
  const { name = "", title, version = "" } = server.serverInfo ?? {};
  const values = {
    Revision: client.revision,
    Session: client.handshake ? (client.session ? `${client.session.slice(0, 12)}…` : "none") : "not needed",
    Offers: Object.keys(server.capabilities ?? {}).join(", ") || "nothing",
  };
  $("server-name").textContent = [title || name, version].filter(Boolean).join(" ");
  $("about").replaceChildren(...Object.entries(values).map(([term, value]) => element("div", {}, element("dt", {}, term), element("dd", {}, value))));
  $("instructions").textContent = server.instructions ?? "";
  $("instructions").hidden = !server.instructions;
}

/** Where the server serves MCP. A setting may have moved it, and the dashboard's stream begins with the facts. */
async function findEndpoint() {
  const response = await fetch("dashboard/events", { cache: "no-store" });
  if (response.ok) for await (const event of events(response)) return `.${JSON.parse(event.data).facts.Endpoint}`;
  return endpoint;
}

/** Start a new connection. Resolves with the client. Rejects if there is no connection, but the page keeps trying. */
function connect() {
  client?.close();
  state("Connecting…");
  const lost = (error) => mine === client && fail(mine, error);
  const mine = new Client(endpoint, $("revision").value, { traffic: record, ask, notified, lost });
  mine.logLevel = $("level").value;
  client = mine;
  const attempt = establish(mine);
  opening = attempt;
  attempt.catch((error) => client === mine && fail(mine, error)).finally(() => opening === attempt && (opening = null));
  return attempt;
}

async function establish(mine) {
  const found = await mine.open();
  if (client !== mine) return client;
  server = found;
  facts();
  await applyLevel();
  const before = JSON.stringify(current());
  await Promise.all(Object.keys(KINDS).map(load));
  if (client !== mine) return client;
  drawKinds();
  // Keep a form that somebody has begun to fill in, unless its tool has changed.
  if (before && before === JSON.stringify(current())) drawItems();
  else open(kind);
  failures = 0;
  $("failure").hidden = true;
  state("Connected", "good");
  return mine;
}

/** Say that there is no connection, and wait for the server. If the server itself refused, it would refuse again. */
async function fail(mine, error) {
  if (mine.gone) return;
  mine.gone = true;
  cease();
  opening = null;
  const final = error instanceof RpcError;
  state("Not connected", "bad");
  $("failure").textContent = `No connection. ${say(error)}${final ? "" : " This page reconnects when the server is back."}`;
  $("failure").hidden = false;
  while (!final && client === mine) {
    await wait(WAITS_MS[Math.min(failures, WAITS_MS.length - 1)]);
    failures += 1;
    if (client === mine && (await knock().catch(() => null)) && client === mine) connect().catch(() => {});
  }
}

/** The connected client. If there is no connection, this tries again at once. */
const connected = async () => opening ?? (client.gone ? connect() : client);
const request = async (...message) => (await connected()).request(...message);

async function applyLevel() {
  client.logLevel = $("level").value;
  if (client.handshake && client.logLevel && server.capabilities?.logging) await client.request("logging/setLevel", { level: client.logLevel });
}

async function notified(method, params) {
  if (method === "notifications/resources/updated") watched.get(params.uri)?.();
  const name = CHANGED[method];
  if (!name) return;
  await load(name);
  drawKinds();
  if (name === kind) drawItems();
}

// Lists

async function load(name) {
  const { needs, load: fetchAll } = KINDS[name];
  offered[name] = needs && !server.capabilities?.[needs] ? [] : await fetchAll();
}

/** The item that is shown. */
const current = () => offered[kind]?.find((item) => item.name === chosen[kind]);

async function loadResources() {
  const [plain, templates] = await Promise.all([client.list("resources/list", "resources"), client.list("resources/templates/list", "resourceTemplates")]);
  return [...plain, ...templates];
}

function drawKinds() {
  $("kinds").replaceChildren(
    ...Object.entries(KINDS).map(([name, each]) => {
      const count = name === "request" ? "" : ` ${offered[name]?.length ?? 0}`;
      const button = element("button", { type: "button", "aria-pressed": String(name === kind) }, each.title, element("span", { className: "soft small" }, count));
      button.dataset.kind = name;
      button.addEventListener("click", () => open(name));
      return button;
    }),
  );
}

function open(name) {
  kind = name;
  for (const button of $("kinds").children) button.setAttribute("aria-pressed", String(button.dataset.kind === name));
  $("filter").value = "";
  $("filter-field").hidden = (offered[name]?.length ?? 0) < 8;
  drawItems();
  const again = current() ?? offered[name]?.[0];
  if (again) show(again);
  else $("detail").replaceChildren(element("p", { className: "empty" }, element("strong", {}, `No ${name}`), KINDS[name].none));
}

function drawItems() {
  const words = $("filter").value.toLowerCase().split(/\s+/);
  const items = (offered[kind] ?? []).filter((item) => words.every((word) => `${item.name} ${item.title ?? ""} ${item.description ?? ""}`.toLowerCase().includes(word)));
  $("items").replaceChildren(
    ...items.map((item) => {
      const about = item.description ?? item.uri ?? item.uriTemplate ?? "";
      const button = element("button", { type: "button", "aria-current": String(item.name === chosen[kind]) }, element("strong", {}, item.title ?? item.name), about ? element("span", {}, about) : "");
      button.addEventListener("click", () => {
        show(item);
        $("detail").focus({ preventScroll: matchMedia("(min-width: 52.01rem)").matches });
      });
      return element("li", {}, button);
    }),
  );
  $("no-items").hidden = items.length > 0;
  $("no-items").replaceChildren(element("strong", {}, offered[kind]?.length ? "No matches" : `No ${kind}`), offered[kind]?.length ? "Try fewer words." : KINDS[kind].none);
}

function show(item) {
  cease();
  chosen[kind] = item.name;
  drawItems();
  $("detail").replaceChildren(...KINDS[kind].show(item));
}

const readUri = (uri) => {
  open("resources");
  show({ name: uri, uri, description: "A resource that a result links to." });
};
const drawContent = (list) => (list.length ? list.flatMap((each) => nodes(each, readUri)) : [element("p", { className: "soft" }, "The result is empty.")]);

// Tools

const HINTS = { readOnlyHint: "reads only", destructiveHint: "may destroy", idempotentHint: "idempotent", openWorldHint: "open world" };

/** A form, or the same as JSON; the one that is shown counts. */
function editor(list) {
  const json = element("textarea", { id: "raw", spellcheck: false });
  const error = element("span", { className: "error", id: "raw-error", hidden: true });
  json.setAttribute("aria-describedby", error.id);
  const whole = { control: json, error };
  const raw = element("div", { className: "field wide", hidden: list.length > 0 }, element("label", { htmlFor: "raw" }, "Arguments as JSON"), json, error);
  const names = ["Form", "JSON"];
  const buttons = names.map((name) => element("button", { type: "button", "aria-pressed": String((name === "JSON") === !raw.hidden) }, name));
  const tools = list.length ? [element("div", { className: "switch", role: "group", "aria-label": "Edit as" }, ...buttons)] : [];
  buttons.forEach((button, index) =>
    button.addEventListener("click", () => {
      if (index === 1 && raw.hidden) json.value = pretty(collect(list) ?? {});
      raw.hidden = index === 0;
      for (const each of list) each.node.hidden = index === 1;
      for (const each of list) each.control.disabled = index === 1;
      buttons.forEach((each) => each.setAttribute("aria-pressed", String(each === button)));
    }),
  );
  const read = () => {
    if (raw.hidden) return collect(list);
    try {
      complain(whole, "");
      return JSON.parse(json.value.trim() || "{}");
    } catch (problem) {
      complain(whole, `This isn't JSON: ${problem.message}`);
      json.focus();
      return null;
    }
  };
  return { tools, parts: [...list.map((each) => each.node), raw], read };
}

function showTool(tool) {
  const list = fields(tool.inputSchema, tool.inputSchema, "argument");
  const closed = !list.length && tool.inputSchema.additionalProperties === false;
  const edit = closed ? { parts: [], read: () => ({}) } : editor(list);
  const badges = Object.entries(HINTS).filter(([name]) => tool.annotations?.[name] === true).map(([, text]) => element("span", { className: "badge" }, text));
  const schemas = element("details", {}, element("summary", {}, "Schemas"), element("pre", { tabIndex: 0, "aria-label": "Schema of the arguments" }, pretty(tool.inputSchema)));
  if (tool.outputSchema) schemas.append(element("pre", { tabIndex: 0, "aria-label": "Schema of the result" }, pretty(tool.outputSchema)));
  return bench({
    heading: tool.title ?? tool.name, about: tool.description, badges, ...edit, verb: "Run",
    run: (values, options) => request("tools/call", { name: tool.name, arguments: values }, { ...options, schema: tool.inputSchema }),
    draw: (result) => drawContent(result.content ?? []),
    extra: [schemas],
  });
}

// Resources and prompts

/** Hear of every change of a resource until the signal says otherwise. */
async function watch({ uri }, signal, changed) {
  watched.set(uri, changed);
  signal.addEventListener("abort", () => watched.delete(uri));
  await (await connected()).watch(uri, signal);
}

/** A field for a variable or argument whose values the server completes. */
function completed(name, { description, required }, ref, list) {
  const [each] = fields({ properties: { [name]: { type: "string", description, minLength: required ? 1 : 0 } }, required: required ? [name] : [] }, {}, `argument-${list.length}`);
  list.push(each);
  if (server.capabilities?.completions) complete(each, ref, list, (params, signal) => request("completion/complete", params, { signal }));
  return each.node;
}

function showResource(resource) {
  const list = [];
  const ref = { type: "ref/resource", uri: resource.uriTemplate };
  const parts = resource.uriTemplate ? variables(resource.uriTemplate).map((name) => completed(name, { required: true }, ref, list)) : [];
  const badges = resource.mimeType ? [element("span", { className: "badge" }, resource.mimeType)] : [];
  return bench({
    heading: resource.title ?? resource.name, about: [resource.uri ?? resource.uriTemplate, resource.description].filter(Boolean).join("\n"), badges, parts, verb: "Read",
    read: () => {
      const values = collect(list);
      return values && { uri: resource.uri ?? expand(resource.uriTemplate, values) };
    },
    run: (params, options) => request("resources/read", params, options),
    watch: server.capabilities?.resources?.subscribe ? watch : null,
    draw: (result) => contents(result.contents ?? []),
  });
}

function showPrompt(prompt) {
  const list = [];
  const ref = { type: "ref/prompt", name: prompt.name };
  const parts = (prompt.arguments ?? []).map((argument) => completed(argument.name, argument, ref, list));
  const said = (message) => element("div", { className: `content said ${message.role}` }, element("p", { className: "soft small" }, message.role), ...[message.content].flat().flatMap((each) => nodes(each, readUri)));
  return bench({
    heading: prompt.title ?? prompt.name, about: prompt.description, parts, verb: "Get", read: () => collect(list),
    run: (values, options) => request("prompts/get", { name: prompt.name, arguments: values }, options),
    draw: (result) => (result.messages ?? []).map(said),
  });
}

function showRequest() {
  const schema = { properties: { method: { type: "string", minLength: 1, default: "tools/list" }, params: { type: "object", default: {} } }, required: ["method"] };
  const list = fields(schema, schema, "argument");
  return bench({
    heading: "Any request", about: "The page adds what the revision also needs: metadata, headers, the session.", parts: list.map((each) => each.node), verb: "Send",
    read: () => collect(list),
    run: ({ method, params = {} }, options) => request(method, params, options),
    draw: (result) => [element("pre", { tabIndex: 0, "aria-label": "Result" }, pretty(result))],
  });
}

// The page

$("revision").append(...REVISIONS.map((date) => element("option", { value: date }, date)));
$("level").append(...LEVELS.map((level) => element("option", { value: level }, level || "none")));
function again(event) {
  event.preventDefault();
  cease();
  if (event.type === "change") offered[kind] = []; // Draw the form again: a revision has its own abilities.
  connect().catch(() => {});
}
$("connection").addEventListener("submit", again);
$("revision").addEventListener("change", again);
$("level").addEventListener("change", () => applyLevel().catch((error) => state(say(error), "bad")));
$("filter").addEventListener("input", drawItems);
addEventListener("pagehide", () => client?.close());
// The browser kept this page in its cache and shows it again.
addEventListener("pageshow", (event) => event.persisted && connect().catch(() => {}));
drawKinds();
endpoint = await findEndpoint().catch(() => endpoint);
connect().catch(() => {});
