// The connect page: what this server offers, and how to add it to each client. The URL is the token audience, because
// OAuth clients reject others, or else relative to this page, so it's correct behind a proxy and below any path. Names and
// descriptions are loaded by MCP with the caller's permissions.

import { $, count, element, icon, labelOf, showText, wrapped, write } from "../dom.js";
import { connect } from "../mcp/offers.js";
import { showLost, showReconnected, watchConnection } from "../shell/connection.js";
import { copyable, copyButton, tabs } from "../shell/controls.js";
import { commands } from "../shell/palette.js";
import { errorMessage } from "../hub.js";
import { clients } from "./clients.js";

const SHOWN = 8; // names in the list
const NEAR = /^(localhost|.*\.localhost|127\..*|\[::1\]|10\..*|192\.168\..*|172\.(1[6-9]|2\d|3[01])\..*|.*\.local)$/;
const PAGES = {
  inspect: ["Inspect", "Call tools, answer their questions, and see every message."],
  chat: ["Chat", "Talk with people, or with a model that uses the tools."],
  docs: ["Docs", "Every tool as a REST operation."],
  dashboard: ["Dashboard", "Live calls, latency, streams, and log."],
  gateway: ["Gateway", "The servers behind this one."]
};

/** @type {{path: string, url: string, keys: boolean, oauth: boolean, pages: string[], sets: string[]}} */
let facts = { path: "/mcp", url: "", keys: false, oauth: false, pages: [], sets: [] };
/** @type {ReturnType<typeof clients>} */
let entries = [];

const url = () => facts.url || new URL(`.${facts.path}`, document.baseURI).href;

/** @param {Json} step */
function drawStep({ text, code, says = "Copy", open, label, warn }) {
  /** @type {HTMLElement[]} */
  const nodes = [element("p", {}, text)];
  if (open) nodes.push(element("a", { className: "button primary", href: open }, icon("add"), label));
  if (code) nodes.push(copyable(wrapped(text, "ltr", code), says));
  return element("li", warn ? "warn" : "", ...nodes);
}

/** @param {string} id */
const drawSteps = (id) => {
  $("steps").replaceChildren(...entries.flatMap((each) => (each.id === id ? each.steps.map(drawStep) : [])));
  $("client").ariaBusy = "false";
};

/** @param {string} name @param {Json | null} tool */
function drawClients(name, tool) {
  const { protocol, hostname } = new URL(url());
  const near = protocol !== "https:" || NEAR.test(hostname);
  entries = clients({ name, url: url(), keys: facts.keys, oauth: facts.oauth, near, tool });
  const chosen = tabs(
    $("clients"),
    entries.map(({ id, title }) => ({ id, title, panel: "client" })),
    (id) => {
      drawSteps(id);
      history.replaceState(null, "", `${location.search}#${id}`);
    }
  );
  const wanted = location.hash.slice(1);
  chosen.choose(entries.some(({ id }) => id === wanted) ? wanted : entries[0].id, false);
  drawSteps(chosen.current());
}

function drawSignIn() {
  const { keys, oauth } = facts;
  const says =
    oauth && keys
      ? "Callers sign in with OAuth, or send a key as Authorization: Bearer KEY."
      : oauth
        ? "Callers sign in with OAuth. Clients open a browser for this."
        : keys
          ? "Callers send a key as Authorization: Bearer KEY. This server's operator can give you one."
          : "No sign-in: every program that reaches this address can call every tool.";
  $("sign-in").replaceChildren(icon(oauth || keys ? "person" : "eye"), element("span", {}, says));
}

/** Link to this page for the other addresses, which have a choice of the items. @param {string} main */
function drawSets(main) {
  const links = [main, ...facts.sets].map((path) =>
    element("a", { href: path === main ? "connect" : `connect?at=${encodeURIComponent(path)}` }, path)
  );
  $("sets").hidden = !facts.sets.length;
  $("sets").replaceChildren("This server has several addresses: ", ...links.flatMap((each) => [each, " "]));
}

function drawPages() {
  const shown = Object.entries(PAGES).filter(([name]) => facts.pages.includes(name));
  $("pages").replaceChildren(
    ...shown.map(([name, [title, about]]) =>
      element(
        "a",
        { className: "card page-link", href: name },
        element("strong", {}, title, icon("next")),
        element("span", "soft small", about)
      )
    )
  );
}

/** Return the first sentence of a description. @param {string | undefined} text */
const summary = (text) => (text ?? "").trim().split(/\n|(?<=[.!?])\s/)[0];

/** @param {Json[]} tools @param {number} resources @param {number} prompts */
function drawOffers(tools, resources, prompts) {
  for (const [name, amount] of Object.entries({ Tool: tools.length, Resource: resources, Prompt: prompts })) {
    const cell = $(`count-${name.toLowerCase()}s`);
    write(cell, count(amount));
    write(/** @type {HTMLElement} */ (cell.previousElementSibling), amount === 1 ? name : `${name}s`);
  }
  const page = ["inspect", "docs"].find((each) => facts.pages.includes(each));
  /** @param {Json} tool */
  const name = (tool) => {
    const words = [
      element("strong", { dir: "auto" }, tool.title ? labelOf(tool) : (tool.annotations?.title ?? tool.name)),
      element("span", { className: "soft small one-line", dir: "auto" }, summary(tool.description))
    ];
    return element(
      "li",
      {},
      page
        ? element("a", { href: `${page}#tool=${encodeURIComponent(tool.name)}` }, ...words)
        : element("div", {}, ...words)
    );
  };
  const rest = tools.length - SHOWN;
  const more =
    rest > 0
      ? [element("li", {}, element(page ? "a" : "div", { href: page, className: "soft" }, `${count(rest)} more`))]
      : [];
  $("names").replaceChildren(...tools.slice(0, SHOWN).map(name), ...more);
  $("names").hidden = !tools.length;
  $("no-tools").hidden = Boolean(tools.length);
  $("no-tools").replaceChildren(
    element("strong", {}, "No tools yet"),
    "Register a function with @mcp.tool and reload this page."
  );
}

/** @param {Json} server */
function drawServer({ serverInfo = {} }) {
  const title = serverInfo.title || serverInfo.name || "Connect";
  write($("title"), title);
  write($("server-name"), title);
  write($("server-version"), serverInfo.version ?? "");
  showText($("version"), serverInfo.version ?? "");
  showText($("about"), serverInfo.description ?? "");
  document.title = `${title} · Connect`;
}

async function start() {
  const response = await fetch("connect/server", { cache: "no-store" });
  if (!response.ok) throw new Error(await errorMessage(response));
  facts = await response.json();
  const main = facts.path;
  const wanted = new URLSearchParams(location.search).get("at");
  if (wanted && facts.sets.includes(wanted)) {
    facts.url = facts.url && facts.url.slice(0, -main.length) + wanted;
    facts.path = wanted;
  }
  drawSets(main);
  write($("address"), url());
  $("address-copy").replaceChildren(copyButton(url, "Copy the URL"));
  drawSignIn();
  drawPages();
  drawClients(document.title, null);

  const { server, list } = await connect(`.${facts.path}`);
  drawServer(server);
  const { tools, resources, templates, prompts } = await list("tools", "resources", "templates", "prompts");
  drawOffers(tools, resources.length + templates.length, prompts.length);
  const harmless = tools.find((/** @type {Json} */ tool) => tool.annotations?.readOnlyHint) ?? tools[0] ?? null;
  drawClients(server.serverInfo?.name ?? "server", harmless);
  showReconnected();
}

commands(() => [
  {
    title: "Copy the URL of the server",
    group: "This page",
    icon: "copy",
    run: () => $("address-copy").querySelector("button")?.click()
  },
  ...entries.map(({ id, title }) => ({
    title: `Connect ${title}`,
    group: "Clients",
    run: () => $(`tab-${id}`).click()
  }))
]);
const attempt = () =>
  start().catch((error) => showLost(`This page couldn't load what the server offers. ${error.message}`, attempt));
await attempt();
watchConnection();
