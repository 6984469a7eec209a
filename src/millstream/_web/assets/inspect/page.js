// The inspector: an MCP client in the page. It lists what the server offers, creates a form for each item, runs it, and
// shows all messages.

import {
  $,
  count,
  element,
  firstVisible,
  hasWords,
  icon,
  onSubmit,
  optionsOf,
  pre,
  save,
  showText,
  store,
  stored,
  write
} from "../dom.js";
import { FIRST, hasHandshake, REVISIONS } from "../mcp/client.js";
import { RpcError } from "../mcp/transports.js";
import { Feed, events } from "../hub.js";
import { copy, copyable, tabs, toast } from "../shell/controls.js";
import { groupItems, LongList, tagsOf } from "../shell/long-list.js";
import { labelsOf } from "../shell/names.js";
import { commands, shortcut } from "../shell/palette.js";
import { cease, say } from "./bench.js";
import { clearHistory, draw as drawHistory } from "./history.js";
import { page } from "./host.js";
import { KINDS, SERVER, updated } from "./kinds.js";
import * as links from "./links.js";
import { clearNotes, drawNotes, note, noteLog, showFailure } from "./notes.js";
import { ask } from "./questions.js";
import { exportCalls, importCalls, outcomeOf, runAll, savedCalls, summary } from "./saved.js";
import { TRANSPORTS, addServer, applyLevel, connect, otherServers, session } from "./session.js";
import { openSettings } from "./settings.js";
import { asWhom, back as backFrom, showAccount, signInCard } from "./sign-in.js";
import { TASKS, knownTasks, taskMark } from "./tasks.js";
import { costOf, saidCost, totalCost } from "./tokens.js";
import * as traffic from "./traffic.js";

/** @typedef {import("./saved.js").Saved} Saved */
/** @typedef {import("./session.js").Server} Server */

const ADD = "add"; // choice of the server
const LEVELS = ["", "debug", "info", "notice", "warning", "error"];
const LINE = "millstream.inspect.line"; // transport, revision, and server of this tab
/** @type {Record<string, string[]>} */
const CHANGED = {
  "notifications/tools/list_changed": ["tools"],
  "notifications/prompts/list_changed": ["prompts"],
  "notifications/resources/list_changed": ["resources", "templates"]
};

let kind = "tools";
/** @type {Record<string, Array<Json>>} */
const offered = {};
/** @type {Record<string, string>} why the list of a kind can't be loaded */
const refused = {};
/** @type {Record<string, string>} name of the open item of each kind */
const chosen = {};
const away = backFrom(); // the place before a sign-in redirect
let asked = links.read(location.hash || (away?.hash ?? "")); // the item in the URL, until it's opened
let welcomed = away === null; // whether the page has shown that sign-in succeeded
/** @type {Server[]} */
let others = [];
let begun = false; // whether a list has been shown

// Lists

const ORDER = "millstream.inspect.order";
/** @type {Map<string, string[]>} tags of this server's tools by name, which its list doesn't contain */
let ownTags = new Map();

/** @param {Json} item */
const tags = (item) => (kind === "tools" && !session.via && ownTags.get(item.name)) || tagsOf(item);
/** @param {Json} item */
const fits = (item) =>
  hasWords(
    `${item.name} ${item.title ?? ""} ${item.description ?? ""} ${item.uri ?? item.uriTemplate ?? ""} ${tags(item).join(" ")}`,
    $("filter").value
  );
const matching = () => (offered[kind] ?? []).filter(fits);

const current = () => offered[kind]?.find((item) => links.idOf(kind, item) === chosen[kind]);

/** @type {Map<Json, string>} of the open list */
let labels = new Map();

const items = new LongList($("items"), {
  label: (item) => labels.get(item) ?? "",
  row: (item, name) =>
    kind === "saved"
      ? savedRow(item, name)
      : [
          element("strong", { dir: "auto" }, ...name),
          kind === "tasks" ? taskMark(item) : costed(item),
          element("span", {}, (item.description ?? item.uri ?? item.uriTemplate ?? "").split("\n")[0])
        ],
  choose: (item) => {
    show(item);
    view("detail");
    $("pane").focus({ preventScroll: true });
  }
});

/** @param {Json} item */
const costed = (item) =>
  kind === "tools" && $("order").value === "tokens"
    ? element("span", { className: "cost", title: saidCost(costOf(item)).title }, count(costOf(item)))
    : "";
/** Return the row of a saved call: its name, its target, and whether it passed. @param {Saved} call @param {Child[]} name */
function savedRow(call, name) {
  const outcome = outcomeOf(call);
  const mark = outcome
    ? element(
        "span",
        `mark ${outcome.good ? "good" : "bad"}`,
        icon(outcome.good ? "check" : "close"),
        element("span", "visually-hidden", outcome.good ? "passes" : "fails")
      )
    : element("span", "mark soft", icon("play"));
  return [
    element("strong", { dir: "auto" }, ...name),
    element("span", {}, call.from === call.name ? call.method : call.from),
    mark
  ];
}

const kinds = tabs(
  $("kinds"),
  Object.entries(KINDS).map(([id, { title }]) => ({ id, title, panel: "offers" })),
  (name) => {
    open(name);
    view("list");
  }
);
for (const [name, { extension }] of Object.entries(KINDS)) kinds.hide(name, Boolean(extension));

/**
 * Whether the server has an extension at this revision. Tasks need the per-request era.
 *
 * @param {string | undefined} extension
 */
function announces(extension) {
  if (!extension) return true;
  if (extension === TASKS && session.client?.handshake) return false;
  return Boolean(
    session.server.capabilities?.extensions?.[extension] ?? session.server.capabilities?.experimental?.[extension]
  );
}

/** @param {string} name */
async function load(name) {
  const { needs, extension, load: fetchAll } = KINDS[name];
  delete refused[name];
  kinds.hide(name, !announces(extension));
  try {
    offered[name] = (needs && !session.server.capabilities?.[needs]) || !announces(extension) ? [] : await fetchAll();
  } catch (error) {
    // If the server rejects one list, such as templates, the others still load.
    if (!(error instanceof RpcError)) throw error;
    offered[name] = [];
    refused[name] = `The server answered: ${say(error)}`;
  }
  kinds.count(name, name === "server" ? "" : offered[name].length || (name === "saved" ? "" : 0));
}

/** Draw the list, and return its first item. */
function drawItems() {
  const found = matching();
  labels = labelsOf(offered[kind] ?? [], (item) => links.idOf(kind, item));
  const order = kind === "tools" ? $("order").value : "groups";
  const groups = order === "groups" ? groupItems(found, ({ name }) => (kind === "tools" ? name : ""), tags) : null;
  if (order === "tokens") found.sort((one, other) => costOf(other) - costOf(one));
  items.show(found, current(), groups, $("filter").value !== "");
  drawFoot();
  const there = offered[kind]?.length;
  $("items").hidden = found.length === 0;
  $("no-items").hidden = found.length > 0 || !begun;
  $("no-items").replaceChildren(
    element("strong", {}, there ? "No matches" : `No ${KINDS[kind].plural ?? kind}`),
    there ? "Try fewer words." : (refused[kind] ?? KINDS[kind].none)
  );
  return groups ? [...groups.values()][0][0] : found[0];
}

/** Draw the footer: the cost of the tools, the order of the list, or the summary of saved calls. */
function drawFoot() {
  const tools = offered.tools ?? [];
  $("saved-foot").hidden = kind !== "saved" || !begun;
  const { text: fared, total, running } = summary();
  write($("saved-summary"), fared);
  $("run-all").hidden = total === 0;
  $("saved-export").hidden = total === 0;
  write($("run-all"), running ? "Stop" : "Run all");
  $("offers-foot").hidden = kind !== "tools" || !tools.length;
  const { text, title } = saidCost(totalCost(tools, session.server.instructions));
  write($("cost"), text);
  $("cost").title = `${text} for the tools and the instructions, in the context of a model. ${title}`;
}

/** Return the placeholder for an empty kind, with an example for developers of this server. @param {string} name */
function nothing(name) {
  const { none, first, example, plural = name } = KINDS[name];
  if (session.via || refused[name] || !begun || !example)
    return element("p", "empty narrow-only", element("strong", {}, `No ${plural}`), refused[name] ?? none);
  const code = copyable(pre("Example", example), "Copy the example");
  const then = element(
    "p",
    "small",
    "Save the file and restart the server. This page reconnects automatically. With ",
    element("code", {}, "millstream dev"),
    ", saving is enough."
  );
  return element(
    "section",
    { className: "empty first", "aria-label": "How to begin" },
    element("p", {}, first),
    code,
    then
  );
}

/** Show a kind: its list, and the item that was last open. @param {string} name */
function open(name) {
  kind = name;
  kinds.choose(name, false);
  $("filter").value = "";
  const first = drawItems();
  const again = current() ?? first;
  if (again) show(again);
  else $("detail").replaceChildren(nothing(name));
}

/** Show an item in the detail view. @param {Json} item @param {Json | null} [values] */
function show(item, values = null) {
  cease();
  chosen[kind] = links.idOf(kind, item);
  if (!items.has(item)) drawItems(); // its group was closed
  items.mark(item);
  $("detail").replaceChildren(...KINDS[kind].show(item, values));
  $("pane").scrollTop = 0;
  history.replaceState(null, "", links.write(kind, chosen[kind]));
}

/**
 * Open an item by name, from a link, the history, or a result. Resources don't have to be listed.
 *
 * @param {{kind: string, name: string, values: Json | null}} item
 */
function jump({ kind: name, name: wanted, values }) {
  const list = offered[name] ?? [];
  const named = list.find((item) => links.idOf(name, item) === wanted) ?? list.find((item) => item.name === wanted);
  const item =
    named ??
    (name === "resources" && /^[a-z][\w+.-]*:/i.test(wanted)
      ? { name: wanted, uri: wanted, described: false, description: "A resource that isn't listed." }
      : null);
  if (!item) return toast(`${wanted} isn't in the list of ${name}.`, "bad");
  kind = name;
  kinds.choose(name, false);
  $("filter").value = "";
  drawItems();
  show(item, values);
  view("detail");
  if (!asked) $("pane").focus({ preventScroll: true }); // not after loading: screen readers start at the top
}

// Connecting

async function findEndpoint() {
  const response = await fetch("dashboard/events", { cache: "no-store" });
  if (response.ok) for await (const event of events(response)) return `.${JSON.parse(event.data).facts.Endpoint}`;
  return session.endpoint;
}

const ownLog = new Feed(
  "inspect/log",
  ({ type, data }) => (type === "failure" ? showFailure : noteLog)(JSON.parse(data)),
  ({ state: now }) => now === "open" && showFailure(null)
);

/** Show the other servers that the operator named, and the user signed in at the current one. */
async function offerServers() {
  const { servers, development, tags: named = {} } = await otherServers();
  const chosenName = $("server").value;
  others = servers;
  ownTags = new Map(Object.entries(named));
  session.development = development;
  if (development) ownLog.start();
  /** @type {Array<[string, string]>} */
  const titles = others.map(({ name, url }) => [name, url]);
  if (development) titles.push([ADD, "Another server…"]);
  $("server").replaceChildren(...optionsOf([["", "This server"], ...titles]));
  $("server").value = others.some(({ name }) => name === chosenName) ? chosenName : "";
  $("other-servers").hidden = titles.length === 0;
  session.via = others.find(({ name }) => name === session.via?.name) ?? null;
  showAccount(session.via, again);
}

/** Connect to another server, or to this one if the program doesn't know it. @param {string} url */
async function select(url) {
  await offerServers().catch(() => {});
  $("server").value = others.find((each) => each.url === url)?.name ?? "";
  again();
}

/** Show the sign-in card of another server. @param {any} error */
async function signIn(error) {
  const mine = session.client;
  await offerServers().catch(() => {});
  if (session.client !== mine || !session.via) return;
  $("server-name").textContent = new URL(session.via.url).host;
  $("server-version").textContent = "";
  begun = true;
  for (const name of Object.keys(KINDS)) {
    offered[name] = [];
    refused[name] = "Sign in to see what this server offers.";
    kinds.count(name, "");
  }
  drawItems();
  $("detail").replaceChildren(
    signInCard(session.via, error, asked ? links.write(asked.kind, asked.name, asked.values) : "")
  );
  view("detail");
}

/** @param {string} text @param {string} look */
function state(text, look) {
  $("state").textContent = text;
  $("state").className = `badge state ${look}`;
  if (look === "good") $("state").dataset.revision = session.client?.revision;
  else delete $("state").dataset.revision;
}

/** Load the lists after connecting, and restore the open item. @param {object} mine */
async function ready(mine) {
  const { name = "", title, version = "" } = session.server.serverInfo ?? {};
  $("server-name").textContent = title || name;
  $("server-version").textContent = version;
  const before = JSON.stringify(current());
  await Promise.all([...Object.keys(KINDS).map(load), offerServers().catch(() => {})]);
  if (session.client !== mine) return;
  begun = true;
  if (!welcomed && session.via?.signed_in) toast(`${asWhom(session.via.signed_in)}.`, "good");
  welcomed = true;
  // Keep the open form, unless its tool has changed.
  if (asked) jump(asked);
  else if (before && before === JSON.stringify(current()) && kind !== "server") drawItems();
  else open(kind);
  if (!current()) open(announces(KINDS[kind].extension) ? kind : "tools");
  asked = null;
}

/** @param {string} method @param {Json} params */
async function notified(method, params) {
  note(method, params);
  if (method === "notifications/resources/updated") updated(params.uri);
  for (const name of CHANGED[method] ?? []) {
    await load(name).catch(() => {});
    if (name === kind) drawItems();
  }
}

function again() {
  cease();
  session.via = others.find(({ name }) => name === $("server").value) ?? null;
  if (session.via) $("transport").value = "http"; // the proxy supports only this transport
  $("transport").disabled = session.via !== null;
  session.transport = $("transport").value;
  if (session.transport === "sse" && !hasHandshake($("revision").value)) $("revision").value = FIRST;
  for (const option of $("revision").querySelectorAll("option"))
    option.disabled = session.transport === "sse" && !hasHandshake(option.value);
  session.revision = $("revision").value;
  store("session", LINE, [session.transport, session.revision, session.via?.url ?? ""]);
  showAccount(session.via, again);
  offered[kind] = []; // redraw the form, because it depends on the revision
  connect().catch(() => {});
}

// The page

/** Select the view on a phone: "list", "detail", or "activity". @param {string | undefined} name */
function view(name) {
  $("main").dataset.view = name;
  for (const button of $("views").querySelectorAll("button")) button.ariaCurrent = String(button.dataset.view === name);
}

const activity = tabs(
  $("activity-tabs"),
  [
    { id: "messages", title: "Messages", panel: "panel-messages" },
    { id: "runs", title: "History", panel: "panel-history" },
    { id: "notes", title: "Notifications", panel: "panel-notes" },
    { id: "logs", title: "Logs", panel: "panel-logs" }
  ],
  drawNotes
);
/** @param {number} number */
const moments = (number) => (number > 999 ? "999+" : number || "");

/** @param {string} method @param {Json} params */
function editAndResend(method, { _meta, inputResponses, requestState, ...params }) {
  jump({ kind: "server", name: SERVER.any, values: { method, params } });
}

const exportTranscript = () =>
  save(
    `${session.server.serverInfo?.name ?? "mcp"}-${new Date().toISOString().slice(0, 19).replaceAll(":", "")}.jsonl`,
    traffic.transcript(),
    "application/jsonl"
  );
/** @type {Record<string, () => void>} */
const clearAll = { messages: traffic.clear, runs: clearHistory, notes: clearNotes, logs: clearNotes };

/** Update the saved calls; `call` is the changed one, if it's only one. @param {Json} [call] */
function savedChanged(call) {
  const before = offered.saved ?? [];
  offered.saved = savedCalls();
  const { done, good, total } = summary();
  kinds.count("saved", total || "", done > good ? "bad" : "");
  if (call && !before.includes(call)) return jump({ kind: "saved", name: call.name, values: null });
  if (kind !== "saved") return;
  if (call && !current()) chosen.saved = call.name; // it was renamed
  items.invalidate();
  drawItems();
  if (!current()) open("saved");
}

/** Update the list of tasks. */
function tasksChanged() {
  offered.tasks = knownTasks();
  kinds.count("tasks", offered.tasks.length);
  if (kind !== "tasks") return;
  items.invalidate();
  drawItems();
}

const copyLink = () => copy(new URL(links.write(kind, chosen[kind]), location.href).href, "The link is copied.");

$("transport").append(...optionsOf(Object.entries(TRANSPORTS).map(([value, { title }]) => [value, title])));
$("revision").append(...optionsOf(REVISIONS.map((date) => [date, date])));
$("level").append(...optionsOf(LEVELS.map((level) => [level, level || "not asked for"])));
let wantedServer = "";
[session.transport, session.revision, wantedServer = ""] = stored("session", LINE, [
  session.transport,
  session.revision
]);
[$("transport").value, $("revision").value] = [session.transport, session.revision];
onSubmit($("connection"), again);
/** @type {HTMLDialogElement} */
const dialog = $("other-server");
$("server").onchange = () => {
  if ($("server").value !== ADD) return again();
  $("server").value = session.via?.name ?? "";
  dialog.showModal();
};
$("server-cancel").onclick = () => dialog.close();
onSubmit($("server-form"), async () => {
  try {
    await select((await addServer($("server-url").value)).url);
    dialog.close();
  } catch (/** @type {any} */ error) {
    showText($("server-error"), say(error));
  }
});
$("transport").onchange = again;
$("revision").onchange = again;
$("level").onchange = () => {
  session.level = $("level").value;
  applyLevel().catch((error) => toast(say(error), "bad"));
};
$("order").value = stored("local", ORDER, "groups");
if (!$("order").value) $("order").value = "groups";
$("order").onchange = () => {
  store("local", ORDER, $("order").value);
  drawItems();
};
$("filter").oninput = drawItems;
$("filter").addEventListener("keydown", (event) => items.key(event));
for (const button of $("views").querySelectorAll("button"))
  button.addEventListener("click", () => view(button.dataset.view));
$("back").onclick = () => view("list");
$("export").onclick = exportTranscript;
$("clear").onclick = () => clearAll[activity.current()]();
addEventListener("hashchange", ({ newURL }) => {
  const wanted = links.read(new URL(newURL).hash); // not `location`, which may have changed since
  if (!begun) asked = wanted ?? asked;
  else if (wanted && (wanted.kind !== kind || wanted.name !== chosen[kind] || wanted.values)) jump(wanted);
});
addEventListener("pagehide", () => session.client?.close());
// Restored from the back/forward cache.
addEventListener("pageshow", (event) => event.persisted && connect().catch(() => {}));

shortcut("/", "Filter the list", () => {
  view("list");
  $("filter").focus();
});
// Forms and questions handle this key themselves.
shortcut("mod+enter", "Run what's open", () =>
  (document.querySelector("dialog[open]") ?? $("detail")).querySelector("form")?.requestSubmit()
);
Object.keys(KINDS).forEach((name, index) =>
  shortcut(String(index + 1), `Show ${KINDS[name].title.toLowerCase()}`, () => {
    if (!announces(KINDS[name].extension)) return;
    open(name);
    view("list");
    $("items").focus();
  })
);
commands(() => [
  ...(current() ? [{ title: "Copy a link to this", group: "This page", icon: "link", run: copyLink }] : []),
  { title: "Reconnect", group: "This page", icon: "reload", run: again },
  {
    title: "Connection settings: headers, key, capabilities",
    group: "This page",
    icon: "settings",
    run: () => openSettings()
  },
  { title: "Export the messages", group: "This page", icon: "download", run: exportTranscript },
  ...Object.entries(offered).flatMap(([name, list]) =>
    [...labelsOf(list, (item) => links.idOf(name, item))].map(([item, title]) => ({
      title,
      hint: item.description ?? "",
      group: KINDS[name].title,
      run: () => jump({ kind: name, name: links.idOf(name, item), values: null })
    }))
  )
]);

Object.assign(page, {
  jump,
  redo: () => {
    const item = current();
    if (!item) return; // the server no longer has it
    show(item);
    firstVisible($("detail"), ".fields :is(input, textarea, select)")?.focus();
  },
  resend: editAndResend,
  reconnect: again,
  count: (/** @type {string} */ list, /** @type {number} */ total, /** @type {string} */ look) =>
    activity.count(list, moments(total), look),
  tools: () => offered.tools ?? [],
  tasksChanged,
  savedChanged,
  sent: (/** @type {Json} */ message, /** @type {any} */ how) => traffic.record(true, message, how),
  got: (/** @type {Json} */ message, /** @type {any} */ how) => traffic.record(false, message, how),
  failed: traffic.fail,
  ask,
  notified,
  state,
  ready,
  signIn
});
drawHistory();
$("run-all").onclick = runAll;
$("saved-export").onclick = exportCalls;
$("saved-import").onclick = () => $("saved-file").click();
$("saved-file").onchange = async () => {
  for (const file of $("saved-file").files ?? []) await importCalls(file);
  $("saved-file").value = "";
};
view("list");
[session.endpoint] = await Promise.all([findEndpoint().catch(() => session.endpoint), offerServers().catch(() => {})]);
// A server that this page has added is added again after a restart.
if (wantedServer && session.development) await addServer(wantedServer).catch(() => {});
if (wantedServer) await select(wantedServer);
else connect().catch(() => {});
