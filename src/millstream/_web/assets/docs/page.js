// The tool reference, built from openapi.json: a filterable list, and one operation at a time. Data from the server is set
// as text, never as markup.

import { $, element, hasWords, hashParameters, pre, showText } from "../dom.js";
import { connect } from "../mcp/offers.js";
import { markdown } from "../render/markdown.js";
import { showLost, showReconnected, watchConnection } from "../shell/connection.js";
import { copyable } from "../shell/controls.js";
import { groupItems, LongList } from "../shell/long-list.js";
import { commands, shortcut } from "../shell/palette.js";
import { errorMessage } from "../hub.js";
import { drawEvents, drawPrompts, drawResources } from "./offers.js";
import { draw } from "./operation.js";

/** @typedef {{name: string, path: string, operation: Json, words: string}} Operation */

/** @type {Json | null} the OpenAPI document */
let root = null;
/** @type {Operation[]} */
let operations = [];
/** @type {Operation[]} */
let shown = [];
/** @type {Operation | null} */
let current = null;
/** @type {Map<Operation, Node[]>} the nodes of operations, kept with their inputs and results */
const drawn = new Map();

const items = new LongList($("index"), {
  label: ({ name }) => name,
  row: (each, name) => [
    element("strong", { dir: "auto" }, ...name),
    element("span", {}, each.operation.summary === each.name ? "" : each.operation.summary)
  ],
  choose: (each) => {
    location.hash = `tool=${encodeURIComponent(each.name)}`;
    view("detail"); // before focusing, because it's hidden on a phone
    $("pane").focus({ preventScroll: true });
  }
});

/** Show the matching operations, in groups if that helps. */
function list() {
  const groups = groupItems(
    shown,
    ({ name }) => name,
    ({ operation }) => operation.tags ?? []
  );
  items.show(shown, current, groups, $("filter").value !== "");
}

function filter() {
  shown = operations.filter((each) => hasWords(each.words, $("filter").value));
  list();
  $("index").hidden = shown.length === 0;
  $("none").hidden = shown.length > 0;
  $("none").replaceChildren(
    element("strong", {}, operations.length ? "No tool matches" : "No tools yet"),
    operations.length ? "Try fewer words." : "Register a function with @mcp.tool and reload this page."
  );
  const all = `${operations.length} ${operations.length === 1 ? "tool" : "tools"}`;
  $("count").textContent = shown.length === operations.length ? all : `${shown.length} of ${all}`;
}

/** @param {string} name */
const view = (name) => ($("main").dataset.view = name);

/** Show the tool, the place in the overview, or the overview that the URL names. */
function route(first = false) {
  if (!root) return;
  const hash = location.hash.slice(1);
  for (const each of $("sections").querySelectorAll("a")) {
    each.ariaCurrent = each.hash === `#${hash}` ? "true" : null;
  }
  const wanted = hashParameters().get("tool");
  const next = wanted === null ? null : operations.find((each) => each.name === wanted);
  if (next && next === current) return void view("detail");
  current = next ?? null;
  $("overview").hidden = Boolean(next);
  $("detail").hidden = !next;
  if (!next && !$("sections").querySelector("[aria-current]")) $("to-overview").ariaCurrent = "true";
  const nodes = next ? (drawn.get(next) ?? draw(next, root)) : [];
  if (next) drawn.set(next, nodes);
  $("detail").replaceChildren(...nodes);
  document.title = next ? `${next.name} · ${root.info.title}` : root.info.title;
  $("failure").hidden = wanted === null || Boolean(next);
  $("failure").textContent =
    wanted !== null && !next ? `This server has no tool ${wanted}. Look it up in the list.` : "";
  $("pane").scrollTop = 0;
  const place = !next && hash && hash !== "overview" && document.getElementById(hash);
  if (place && $("overview").contains(place)) {
    for (const each of document.querySelectorAll(".pointed")) each.classList.remove("pointed");
    if (place.matches("tr")) place.classList.add("pointed");
    place.scrollIntoView({ block: place.matches("section") ? "start" : "center" });
  }
  if (!$("failure").hidden) $("failure").scrollIntoView({ block: "nearest" });
  if (next && shown.includes(next)) {
    if (!items.has(next)) list(); // its group was closed
    items.mark(next);
  } else list();
  view(!hash && first ? "list" : "detail");
}

const PATIENCE_MS = 300; // wait for sections above the list of tools, to avoid a layout shift

/** @param {Json} document_ */
async function ready(document_) {
  root = document_;
  operations = Object.entries(root.paths).map(([path, item]) => ({
    name: item.post.operationId,
    path: path.slice(1),
    operation: item.post,
    words: `${item.post.operationId} ${item.post.description} ${(item.post.tags ?? []).join(" ")}`
  }));
  $("server-name").textContent = $("overview-title").textContent = root.info.title;
  $("server-version").textContent = root.info.version === "0" ? "" : root.info.version; // OpenAPI requires a version; "0" means none
  $("base").textContent = new URL(".", document.baseURI).href;
  $("about").replaceChildren(...(root.info.description ? markdown(root.info.description) : []));
  await Promise.race([drawBeside(root["x-mcp"]), new Promise((resolve) => setTimeout(resolve, PATIENCE_MS))]);
  $("detail").removeAttribute("aria-busy");
  filter();
  route(true);
}

/** Draw the sections for connecting, resources, prompts, and events. @param {Json | undefined} mcp */
async function drawBeside(mcp) {
  if (!mcp) return;
  const endpoint = new URL(mcp.endpoint, document.baseURI).href;
  $("connect").hidden = false;
  $("endpoint").replaceWith(copyable(pre("URL of the server", endpoint), "Copy the URL"));
  $("to-connect").hidden = !document.querySelector('.bar nav a[href="connect"]');
  /** @param {string} id @param {string | number} size @param {Node[] | null} nodes */
  const show = (id, size, nodes) => {
    $(id).hidden = $(`to-${id}`).hidden = !nodes;
    if (nodes) $(id).lastElementChild?.replaceChildren(...nodes);
    if (nodes && size) $(`to-${id}`).lastElementChild?.replaceChildren(String(size));
  };
  if (mcp.events) show("events", 0, drawEvents(document.baseURI));
  const found = await connect(mcp.endpoint)
    .then(({ list: fetchLists }) => fetchLists("resources", "templates", "prompts"))
    .catch(() => null); // without permission, these sections stay hidden
  if (!found) return;
  const resources = found.resources.length + found.templates.length;
  show("resources", resources, resources ? drawResources(found, endpoint) : null);
  show("prompts", found.prompts.length, found.prompts.length ? drawPrompts(found) : null);
  if (["#resources", "#prompts"].includes(location.hash)) $(location.hash.slice(1)).scrollIntoView();
}

async function load() {
  try {
    const response = await fetch("openapi.json");
    if (!response.ok) throw new Error(await errorMessage(response));
    await ready(await response.json());
    showReconnected();
    watchConnection();
  } catch (/** @type {any} */ error) {
    const reason = error.name === "TypeError" ? "The server can't be reached." : error.message;
    $("detail").removeAttribute("aria-busy");
    showText($("failure"), `The list of tools couldn't be loaded. ${reason}`);
    showLost(`${reason} This page tries again every few seconds.`, load);
    setTimeout(() => root ?? load(), 5_000);
  }
}

$("filter").oninput = filter;
$("filter").addEventListener("keydown", (event) => items.key(event));
$("sign-in").hidden = !$("account");
$("back").onclick = () => view("list");
$("to-overview").onclick = () => location.hash === "#overview" && view("detail");
addEventListener("hashchange", () => route());
/** @param {number} by */
const step = (by) => {
  const at = current ? shown.indexOf(current) : -1;
  const next = shown[Math.max(0, Math.min(shown.length - 1, at + by))];
  if (next) location.hash = `tool=${encodeURIComponent(next.name)}`;
};
shortcut("/", "Find a tool", () => {
  view("list");
  $("filter").focus();
});
shortcut("j", "Next tool", () => step(1));
shortcut("k", "Previous tool", () => step(-1));
commands(() => [
  { title: "Overview", group: "Reference", run: () => (location.hash = "overview") },
  ...operations.map((each) => ({
    title: each.name,
    group: "Tools",
    hint: each.operation.summary,
    run: () => (location.hash = `tool=${encodeURIComponent(each.name)}`)
  }))
]);
load();
