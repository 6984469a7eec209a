// Saved calls with checks of their results. They're stored in the browser, and can be exported.

import { isObject } from "../schema/resolve.js";
import { page } from "./host.js";
import {
  element,
  figure,
  fold,
  icon,
  labeled,
  makeButton,
  onSubmit,
  optionsOf,
  pretty,
  save as saveFile,
  store,
  stored,
  textInput
} from "../dom.js";
import { RpcError } from "../mcp/transports.js";
import { jsonBlock } from "../render/json.js";
import { copyable, toast } from "../shell/controls.js";
import { say } from "./bench.js";
import { RELATIONS, WITHOUT_VALUE, at, judge, paths } from "./checks.js";
import { request, session } from "./session.js";

const KEY = "millstream.inspect.saved";
const FORMAT = "millstream-calls";
const KEPT = 300;
const MAX_CHECKS = 50;
const MAX_FILE = 2_000_000;
/** @type {Record<string, string>} */
const METHODS = { "tools/call": "tools", "resources/read": "resources", "prompts/get": "prompts" };

/**
 * @typedef {object} Saved
 * @property {string} name unique for each server
 * @property {string} server
 * @property {string} kind kind of the item
 * @property {string} from name of the item
 * @property {Json} values values of its form
 * @property {string} method
 * @property {Json} params
 * @property {boolean} fails whether it's expected to fail
 * @property {Array<{path: string, relation: string, value: string}>} checks
 */

/** @type {Saved[]} */
let all = [];
/** @typedef {{good: boolean, problems: string[], result: Json | null, ms: number}} Judgment */

/** @type {WeakMap<Saved, Judgment>} */
const outcomes = new WeakMap();
/** @type {AbortController | null} stops "Run all" */
let stop = null;

const here = () => session.via?.url ?? `own ${session.server.serverInfo?.name ?? ""}`;

/** Return the calls of the current server. */
export const savedCalls = () => all.filter((call) => call.server === here());

/** @param {Saved} call */
export const outcomeOf = (call) => outcomes.get(call) ?? null;

function keepAll() {
  if (!store("local", KEY, all))
    toast("The browser's storage is full. New calls last only as long as this page.", "bad");
}

/** Validate a stored or imported call; null if it's invalid. @param {any} given @param {string} server */
function clean(given, server) {
  if (!isObject(given) || !Object.hasOwn(METHODS, given.method) || !isObject(given.params)) return null;
  const checks = (Array.isArray(given.checks) ? given.checks : [])
    .filter((each) => isObject(each) && typeof each.path === "string" && Object.hasOwn(RELATIONS, each.relation))
    .slice(0, MAX_CHECKS);
  const kind = given.kind === "templates" && given.method === "resources/read" ? "templates" : METHODS[given.method];
  return {
    name: String(given.name || given.from || given.method).slice(0, 120),
    server: String(server ?? ""),
    kind,
    from: String(given.from ?? given.params.name ?? given.params.uri ?? ""),
    values: isObject(given.values) ? given.values : {},
    method: given.method,
    params: given.params,
    fails: given.fails === true,
    checks: checks.map(({ path, relation, value }) => ({ path, relation, value: String(value ?? "") }))
  };
}

/** @type {any[]} */
const before = stored("local", KEY, []);
all = before.flatMap((each) => clean(each, each?.server) ?? []);

/** Return a name that no other call of this server has. @param {string} name */
function unused(name) {
  const taken = new Set(savedCalls().map((each) => each.name));
  for (let number = 1; ; number += 1) {
    const wanted = number === 1 ? name : `${name} ${number}`;
    if (!taken.has(wanted)) return wanted;
  }
}

/** Save a call. `last` is its newest outcome, if it was run. @param {Json} call @param {Json | null} last */
export function keep({ kind, from, values, method, params }, last) {
  const call = clean(
    { kind, from, values, method, params, name: unused(from), fails: last?.good === false, checks: [] },
    here()
  );
  if (!call) return;
  all.push(call);
  if (all.length > KEPT) all.shift();
  if (last?.result) outcomes.set(call, { good: true, problems: [], result: last.result, ms: last.ms });
  keepAll();
  page.savedChanged(call);
}

/** Set or clear the outcome of a call. @param {Saved} call @param {Judgment | null} outcome */
function judged(call, outcome) {
  if (outcome) outcomes.set(call, outcome);
  else outcomes.delete(call);
  if (shown?.call === call) shown.draw();
  page.savedChanged(call);
}

/** Run a call, and check its result. @param {Saved} call @param {AbortSignal} [signal] */
async function run(call, signal) {
  const started = performance.now();
  let result;
  let failed;
  try {
    result = await request(call.method, call.params, { signal });
    failed = result.isError === true;
  } catch (error) {
    if (!(error instanceof RpcError)) {
      return judged(call, { good: false, problems: [say(error)], result: null, ms: performance.now() - started });
    }
    result = {
      error: { code: error.code, message: error.message, ...(error.data === undefined ? {} : { data: error.data }) }
    };
    failed = true;
  }
  const problems =
    failed === call.fails
      ? []
      : [failed ? `It failed: ${result.error?.message ?? result.content?.[0]?.text ?? ""}` : "It didn't fail."];
  for (const check of call.checks) {
    const { good, found, problem } = judge(check, result);
    if (!good)
      problems.push(
        `${check.path || "The result"} ${RELATIONS[check.relation]}${WITHOUT_VALUE.includes(check.relation) ? "" : ` ${check.value}`}: ${problem ?? `it's ${found === undefined ? "missing" : JSON.stringify(found).slice(0, 200)}`}`
      );
  }
  judged(call, { good: !problems.length, problems, result, ms: performance.now() - started });
}

/** Run all calls of this server in turn, or stop if they're running. */
export async function runAll() {
  if (stop) return stop.abort();
  stop = new AbortController();
  const { signal } = stop;
  for (const call of savedCalls()) judged(call, null);
  for (const call of savedCalls()) {
    if (signal.aborted) break;
    await run(call, signal);
  }
  stop = null;
  page.savedChanged();
}

/** Summarize the outcomes: "3 of 4 pass". */
export function summary() {
  const calls = savedCalls();
  const done = calls.flatMap((call) => outcomeOf(call) ?? []);
  const good = done.filter((each) => each.good).length;
  return {
    running: stop !== null,
    total: calls.length,
    done: done.length,
    good,
    text: !done.length ? `${calls.length} ${calls.length === 1 ? "call" : "calls"}` : `${good} of ${done.length} pass`
  };
}

export const exportCalls = () =>
  saveFile(
    `${session.server.serverInfo?.name ?? "mcp"}-calls.json`,
    `${pretty({ format: FORMAT, version: 1, calls: savedCalls().map(({ server, ...call }) => call) })}\n`,
    "application/json"
  );

/** Import calls from a file. @param {File} file */
export async function importCalls(file) {
  let found = null;
  try {
    if (file.size <= MAX_FILE) found = JSON.parse(await file.text());
  } catch {
    // Reported below.
  }
  /** @type {unknown[]} */
  const given = found?.format === FORMAT && Array.isArray(found.calls) ? found.calls : [];
  const calls = given.flatMap((each) => clean(each, here()) ?? []);
  if (!calls.length) return toast(`${file.name} has no calls. Choose a file that this page has exported.`, "bad");
  for (const call of calls.slice(0, KEPT)) all.push({ ...call, name: unused(call.name) });
  all = all.slice(-KEPT);
  keepAll();
  page.savedChanged();
  toast(calls.length === 1 ? "1 call was added." : `${calls.length} calls were added.`, "good");
}

// Detail view of a call

let made = 0;
/** @type {{call: Saved, draw: () => void} | null} the open call, and the function that redraws its outcome */
let shown = null;

/**
 * Create the fields of a check.
 *
 * @param {Saved["checks"][number]} check
 * @param {{list: HTMLElement, result: () => Json | null, edited: () => void, remove: () => void}} row
 */
function checkRow(check, { list, result, edited, remove }) {
  const path = textInput({
    value: check.path,
    placeholder: "structuredContent.total",
    "aria-label": "Place in the result",
    list: list.id
  });
  const relation = element("select", { "aria-label": "Relation" }, ...optionsOf(Object.entries(RELATIONS)));
  const value = textInput({ value: check.value, placeholder: "Value", "aria-label": "Value" });
  const away = makeButton(
    { className: "quiet small square", title: "Remove", "aria-label": "Remove this check" },
    remove,
    icon("close")
  );
  relation.value = check.relation;
  const show = () => (value.hidden = WITHOUT_VALUE.includes(relation.value));
  const take = () => {
    Object.assign(check, { path: path.value.trim(), relation: relation.value, value: value.value });
    show();
    edited();
  };
  value.addEventListener("focus", () => {
    // The value in the last result is most likely the expected one.
    const found = at(result(), path.value.trim());
    if (!value.value && found !== undefined && relation.value === "equals")
      value.value = typeof found === "string" ? found : JSON.stringify(found);
    value.select();
    take();
  });
  for (const each of [path, relation, value]) each.addEventListener("input", take);
  show();
  return element("div", "check-row", path, relation, value, away);
}

/** Render the outcome of a call. @param {Saved} call */
function verdict(call) {
  const outcome = outcomeOf(call);
  if (!outcome) return [];
  const { good, problems, result, ms } = outcome;
  const list = problems.length
    ? [
        element(
          "ul",
          { className: "problems", "aria-label": "What doesn't hold" },
          ...problems.map((each) => element("li", { dir: "auto" }, each))
        )
      ]
    : [];
  const shown = result ? [copyable(jsonBlock(result, "Result as JSON"), "Copy the result")] : [];
  return [
    element(
      "div",
      "row",
      element("span", `badge ${good ? "good" : "bad"}`, good ? "Pass" : "Fail"),
      element("span", "soft small", `${figure(ms)} ms`)
    ),
    ...list,
    ...shown
  ];
}

/** Return the nodes of a call: its request, its checks, and its outcome. @param {Saved} call */
export function savedCard(call) {
  const id = `saved-${++made}`;
  const list = element("datalist", { id: `${id}-paths` });
  const name = textInput({ id: `${id}-name`, value: call.name, maxLength: 120 });
  const must = element(
    "select",
    { id: `${id}-must` },
    element("option", { value: "" }, "It succeeds"),
    element("option", { value: "fails" }, "It fails")
  );
  must.value = call.fails ? "fails" : "";
  const rows = element("div", { className: "stack tight", role: "group", "aria-label": "Checks" });
  const output = element("section", { className: "card result", "aria-label": "Result", hidden: true });
  const suggest = () => {
    list.replaceChildren(...paths(outcomeOf(call)?.result ?? {}).map((value) => element("option", { value })));
  };
  const edited = () => {
    keepAll();
    page.savedChanged(call);
  };
  const draw = () =>
    rows.replaceChildren(
      ...call.checks.map((check) =>
        checkRow(check, {
          list,
          result: () => outcomeOf(call)?.result ?? null,
          edited,
          remove: () => {
            call.checks.splice(call.checks.indexOf(check), 1);
            draw();
            edited();
            add.focus();
          }
        })
      )
    );
  const add = makeButton(
    "quiet small",
    () => {
      if (call.checks.length >= MAX_CHECKS) return;
      call.checks.push({ path: "", relation: "equals", value: "" });
      draw();
      rows.lastElementChild?.querySelector("input")?.focus();
    },
    icon("add"),
    "Add a check"
  );
  const show = () => {
    suggest();
    output.hidden = !outcomeOf(call);
    output.replaceChildren(...verdict(call));
  };
  const button = element("button", { type: "submit", className: "primary" }, icon("play"), "Run");
  const open = makeButton("", () => page.jump({ ...call, name: call.from }), icon("edit"), "Open the form");
  const remove = makeButton(
    "quiet",
    () => {
      all.splice(all.indexOf(call), 1);
      keepAll();
      page.savedChanged();
    },
    icon("trash"),
    "Delete"
  );
  const form = element(
    "form",
    { className: "stack", "aria-label": call.name, noValidate: true },
    labeled("Name", name),
    labeled("What must hold", must, rows, element("div", {}, add), list),
    element("div", "row actions", button, open, remove)
  );
  name.addEventListener("change", () => {
    const wanted = name.value.trim() || call.from;
    if (wanted !== call.name) call.name = unused(wanted);
    name.value = call.name;
    edited();
  });
  must.addEventListener("change", () => {
    call.fails = must.value === "fails";
    edited();
  });
  onSubmit(form, async () => {
    if (button.ariaDisabled === "true") return;
    button.ariaDisabled = "true";
    await run(call);
    button.ariaDisabled = null;
  });
  draw();
  show();
  shown = { call, draw: show };
  const sent = fold(
    "What it sends",
    copyable(jsonBlock({ method: call.method, params: call.params }, "Request"), "Copy the request")
  );
  const header = element(
    "header",
    "stack tight",
    element("h2", { dir: "auto" }, call.name),
    element("p", { className: "sub code soft", dir: "auto" }, `${call.method} ${call.from}`)
  );
  return [
    element(
      "article",
      { className: "card stack", "aria-label": call.name },
      header,
      form,
      element("div", "folds", sent)
    ),
    output
  ];
}
