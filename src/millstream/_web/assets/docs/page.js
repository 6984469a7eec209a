// The reference of the tools, made from openapi.json: a list that one can filter, and one operation at a time. What comes
// from the server is set as text, never as markup.

import { $, element } from "../dom.js";
import { markdown } from "../render/markdown.js";
import { lost, back, watch } from "../shell/connection.js";
import { shortcut } from "../shell/keys.js";
import { LongList } from "../shell/long-list.js";
import { commands } from "../shell/palette.js";
import { refusal } from "../sse.js";
import { draw } from "./operation.js";

let root = null;
let operations = [];
let shown = [];
let current = null;
const drawn = new Map(); // operation -> its nodes: what somebody typed, opened and got there stays as long as the page

const items = new LongList($("index"), {
  row: (each) => [element("strong", {}, each.name), element("span", {}, each.operation.summary === each.name ? "" : each.operation.summary)],
  choose: (each) => {
    location.hash = `tool=${encodeURIComponent(each.name)}`;
    view("detail"); // a phone hides it until then, and what is hidden takes no focus
    $("pane").focus({ preventScroll: true });
  },
  height: () => Number.parseFloat(getComputedStyle($("index")).getPropertyValue("--row")) * 16,
});

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/);
  shown = operations.filter((each) => words.every((word) => each.words.includes(word)));
  items.show(shown, current);
  $("index").hidden = shown.length === 0;
  $("none").hidden = shown.length > 0;
  $("none").replaceChildren(element("strong", {}, operations.length ? "No tool matches" : "No tools yet"), operations.length ? "Try fewer words." : "Register a function with @mcp.tool and reload this page.");
  const all = `${operations.length} ${operations.length === 1 ? "tool" : "tools"}`;
  $("count").textContent = shown.length === operations.length ? all : `${shown.length} of ${all}`;
}

const view = (name) => ($("main").dataset.view = name);

/** Show what the address names: a tool, a place in the overview, or the overview. */
function route(first = false) {
  if (!root) return;
  const hash = location.hash.slice(1);
  const wanted = new URLSearchParams(hash.replaceAll("+", "%2B")).get("tool");
  const next = wanted === null ? null : operations.find((each) => each.name === wanted);
  if (next && next === current) return view("detail");
  current = next ?? null;
  $("overview").hidden = Boolean(next);
  $("detail").hidden = !next;
  if (next) $("to-overview").removeAttribute("aria-current");
  else $("to-overview").ariaCurrent = "true";
  if (next && !drawn.has(next)) drawn.set(next, draw(next, root));
  if (next) $("detail").replaceChildren(...drawn.get(next));
  else $("detail").replaceChildren();
  document.title = next ? `${next.name} · ${root.info.title}` : root.info.title;
  $("failure").hidden = wanted === null || Boolean(next);
  $("failure").textContent = wanted !== null && !next ? `There's no tool ${wanted} on this server. Look it up in the list.` : "";
  $("pane").scrollTop = 0;
  const place = !next && hash && hash !== "overview" && document.getElementById(hash);
  if (place && $("overview").contains(place)) {
    for (const each of document.querySelectorAll(".pointed")) each.classList.remove("pointed");
    place.classList.add("pointed");
    place.scrollIntoView({ block: "center" });
  }
  if (next && first) items.mark(next);
  else if (next && shown.includes(next)) items.mark(next);
  else items.show(shown, null);
  view(!hash && first ? "list" : "detail");
}

function ready(document_) {
  root = document_;
  operations = Object.entries(root.paths).map(([path, item]) => ({ name: item.post.operationId, path: path.slice(1), operation: item.post, words: `${item.post.operationId} ${item.post.description}`.toLowerCase() }));
  $("server-name").textContent = $("overview-title").textContent = root.info.title;
  $("server-version").textContent = root.info.version === "0" ? "" : root.info.version; // OpenAPI wants one of those who have none
  $("base").textContent = new URL(".", document.baseURI).href;
  $("about").replaceChildren(...(root.info.description ? markdown(root.info.description) : []));
  $("detail").removeAttribute("aria-busy");
  filter();
  route(true);
}

async function load() {
  try {
    const response = await fetch("openapi.json");
    if (!response.ok) throw new Error(await refusal(response));
    ready(await response.json());
    back();
    watch();
  } catch (error) {
    const reason = error.name === "TypeError" ? "The server can't be reached." : error.message;
    $("detail").removeAttribute("aria-busy");
    $("failure").textContent = `The list of tools couldn't be loaded. ${reason}`;
    $("failure").hidden = false;
    lost(`${reason} This page tries again every few seconds.`, load);
    setTimeout(() => root ?? load(), 5_000);
  }
}

$("filter").addEventListener("input", filter);
$("filter").addEventListener("keydown", (event) => items.key(event));
$("back").addEventListener("click", () => view("list"));
$("to-overview").addEventListener("click", () => location.hash === "#overview" && view("detail"));
addEventListener("hashchange", () => route());
const step = (by) => {
  const next = shown[Math.max(0, Math.min(shown.length - 1, shown.indexOf(current) + by))];
  if (next) location.hash = `tool=${encodeURIComponent(next.name)}`;
};
shortcut("/", "Find a tool", () => {
  view("list");
  $("filter").focus();
});
shortcut("j", "Next tool", () => step(1));
shortcut("k", "Previous tool", () => step(-1));
commands(() => [
  { title: "Overview", group: "Reference", icon: "next", run: () => (location.hash = "overview") },
  ...operations.map((each) => ({ title: each.name, group: "Tools", hint: each.operation.summary, icon: "next", run: () => (location.hash = `tool=${encodeURIComponent(each.name)}`) })),
]);
load();
