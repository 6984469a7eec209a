// The runs of this tab, newest first. Each can be reopened with its values.

import { $, clock, element, figure, makeButton } from "../dom.js";
import { icon } from "../shell/icons.js";
import { drawWhenReleased } from "../shell/press.js";
import { session } from "./session.js";

const KEY = "millstream.inspect.history";
const KEPT = 100;
const MAX_BYTES = 20_000;

/**
 * @typedef {{server: string, kind: string, name: string, values: Record<string, any>, kept: Record<string, any>, text: string, good: boolean, ms: number, at: number}} Run
 *   `kept` are the values without secrets, which are stored
 */

/** @type {Run[]} */
let runs = [];
/** @type {(...given: any[]) => void} */
let reopen = () => {};
/** @type {(...given: any[]) => void} */
let counted = () => {};

const here = () => session.via?.url ?? "";

/** `open(run)` is called to reopen a run. */
export function connectHistory({ open, count }) {
  reopen = open;
  counted = count;
  try {
    runs = (JSON.parse(sessionStorage.getItem(KEY)) ?? []).map((run) => ({ ...run, kept: run.values }));
  } catch {
    runs = [];
  }
  draw();
}

/** Add a run to the history. */
export function remember(run) {
  runs.unshift({ ...run, server: here(), at: Date.now() });
  runs.length = Math.min(runs.length, KEPT);
  try {
    const lasting = runs
      .map((each) => ({ ...each, values: each.kept, kept: undefined }))
      .filter((each) => JSON.stringify(each.values).length < MAX_BYTES);
    sessionStorage.setItem(KEY, JSON.stringify(lasting));
  } catch {
    // Storage is full or blocked: the history lasts as long as the page.
  }
  draw();
}

/** Return the values last sent to an item of this server, or null. */
export const lastSent = (kind, name) =>
  runs.find((each) => each.server === here() && each.kind === kind && each.name === name)?.values ?? null;

export function clearHistory() {
  runs = [];
  sessionStorage.removeItem(KEY);
  draw();
}

function draw() {
  counted(runs.length);
  $("no-history").hidden = runs.length > 0;
  const items = () =>
    runs.map((run) => {
      const values = JSON.stringify(run.values);
      const button = makeButton(
        { className: "quiet", title: "Open it again with these values" },
        () => reopen(run),
        element("span", `mark ${run.good ? "good" : "bad"}`, icon(run.good ? "check" : "close")),
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
