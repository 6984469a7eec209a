// The runs of this tab, newest first. Each can be reopened with its values.

import { page } from "./host.js";
import { $, clock, element, figure, icon, makeButton, store, stored } from "../dom.js";
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
let runs = stored("session", KEY, []).map((run) => ({ ...run, kept: run.values }));

const here = () => session.via?.url ?? "";

/** Add a run to the history. */
export function remember(run) {
  runs.unshift({ ...run, server: here(), at: Date.now() });
  runs.length = Math.min(runs.length, KEPT);
  const lasting = runs
    .map((each) => ({ ...each, values: each.kept, kept: undefined }))
    .filter((each) => JSON.stringify(each.values).length < MAX_BYTES);
  store("session", KEY, lasting);
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
