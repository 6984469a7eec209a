// Earlier calls, and drafts of the next one.

import { $, clock, element, figure, icon, makeButton, store, stored } from "../dom.js";
import { page } from "./host.js";
import { session } from "./session.js";
import { drawWhenReleased } from "../shell/controls.js";

// The runs of this tab, newest first. Each can be reopened with its values.

const KEY = "millstream.inspect.history";
const KEPT = 100; // runs, and drafts
const MAX_BYTES = 20_000;

/**
 * @typedef {{server: string, kind: string, name: string, values: Json, kept: Json, text: string, good: boolean, ms: number, at: number}} Run
 *   `kept` are the values without secrets, which are stored
 */

/** @type {Run[]} */
let runs = stored("session", KEY, []).map((/** @type {Run} */ run) => ({ ...run, kept: run.values }));

const here = () => session.via?.url ?? "";

/** Add a run to the history. @param {Omit<Run, "server" | "at">} run */
export function remember(run) {
  runs.unshift({ ...run, server: here(), at: Date.now() });
  runs.length = Math.min(runs.length, KEPT);
  const lasting = runs
    .map((each) => ({ ...each, values: each.kept, kept: undefined }))
    .filter((each) => JSON.stringify(each.values).length < MAX_BYTES);
  store("session", KEY, lasting);
  draw();
}

/** Return the values last sent to an item of this server, or null. @param {string} kind @param {string} name */
export const lastSent = (kind, name) =>
  runs.find((each) => each.server === here() && each.kind === kind && each.name === name)?.values ?? null;

export function clearHistory() {
  runs = [];
  store("session", KEY, runs);
  draw();
}

/** @param {Run} run */
const mark = ({ good, text }) =>
  text === "Canceled"
    ? element("span", "mark soft", icon("stop"))
    : element("span", `mark ${good ? "good" : "bad"}`, icon(good ? "check" : "close"));

export function draw() {
  page.count("runs", runs.length);
  $("no-history").hidden = runs.length > 0;
  const items = () =>
    runs.map((run) => {
      const values = JSON.stringify(run.values);
      const button = makeButton(
        { className: "quiet", title: "Open it again with these values" },
        () => page.jump(run),
        mark(run),
        element("span", "what one-line", element("strong", {}, run.name), ` ${values === "{}" ? "" : values}`),
        element(
          "time",
          { dateTime: new Date(run.at).toISOString(), title: clock(new Date(run.at)) },
          `${run.text === "Done" ? "" : `${run.text}, `}${figure(run.ms)} ms`
        )
      );
      return element("li", {}, button);
    });
  drawWhenReleased($("history"), () => $("history").replaceChildren(...items()));
}

// Drafts of forms. Until the page is closed, a reopened item has the entered values, even invalid ones. After a reload,
// it has the values that were last sent from this tab.

/** @type {Map<string, {form: Json, shape: string} | null>} in the order of use; null after a reset */
const drafts = new Map();

/** @param {string} kind @param {string} name */
const keyOf = (kind, name) => JSON.stringify([session.via?.url ?? "", kind, name]);

/** @param {Json} form */
function read(form) {
  try {
    return form.values();
  } catch {
    return null; // Invalid values don't fit another form.
  }
}

/**
 * Return the existing form of an item, or create one.
 *
 * @param {string} kind
 * @param {string} name
 * @param {unknown} about schema of the form: if it has changed, a new form gets the old values
 * @param {() => Json} make
 */
export function draft(kind, name, about, make) {
  const key = keyOf(kind, name);
  const shape = JSON.stringify(about);
  const kept = drafts.get(key);
  const form = kept?.shape === shape ? kept.form : make();
  if (form !== kept?.form) {
    const values = kept ? read(kept.form) : kept === undefined ? lastSent(kind, name) : null;
    if (values) form.write(values);
  }
  drafts.delete(key);
  drafts.set(key, { form, shape });
  if (drafts.size > KEPT) drafts.delete(drafts.keys().next().value ?? "");
  return form;
}

/** Reset the form of an item to its defaults. @param {string} kind @param {string} name */
export const forget = (kind, name) => drafts.set(keyOf(kind, name), null);
