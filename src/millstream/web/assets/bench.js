// One thing of a server on the bench: its form, what it does while it runs, and what came of it.

import { element, figure, pretty } from "./dom.js";
import { RpcError } from "./mcp.js";

let running = null;
let watching = null;

/** End what is under way: something else takes its place. */
export function cease() {
  running?.abort(new Error("Cancelled."));
  watching?.abort(new Error("No longer watched."));
}

/** An error as a person reads it. */
export function say(error) {
  const code = error instanceof RpcError ? ` (${error.code})` : "";
  return error.name === "TypeError" ? "The server can't be reached." : `${error.message}${code}`;
}

/**
 * The nodes of one thing. `parts` are the fields, `read()` gives the parameters or null, `run(parameters, options)`
 * does it, `draw(result)` gives the nodes of what came of it. `watch(parameters, signal, changed)` is there where one
 * can hear of changes: each runs it again.
 */
export function bench({ heading, about, badges = [], tools = [], parts, read, run, draw, verb, watch = null, extra = [] }) {
  const button = element("button", { className: "primary", type: "submit" }, verb);
  const cancel = element("button", { type: "button", hidden: true }, "Cancel");
  const follow = element("button", { type: "button", "aria-pressed": "false", hidden: !watch }, "Watch");
  const form = element("form", { "aria-label": heading }, ...parts, element("div", { className: "row" }, button, cancel, follow));
  const output = element("section", { className: "card stack tight", "aria-label": "Result", hidden: true });
  const status = element("p", { className: "visually-hidden", role: "status" });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const params = button.ariaDisabled === "true" ? null : read();
    if (params === null) return;
    const stop = (running = new AbortController());
    cancel.onclick = () => stop.abort(new Error("Cancelled."));
    cancel.hidden = false;
    // Not `disabled`: the focus comes back here when a question is answered.
    button.ariaDisabled = "true";
    status.textContent = "Running";
    status.textContent = await perform(output, draw, (options) => run(params, { ...options, signal: stop.signal }));
    button.ariaDisabled = null;
    if (document.activeElement === cancel) button.focus();
    cancel.hidden = true;
  });
  follow.addEventListener("click", () => toggle(follow, form, status, { read, watch }));
  const title = element("div", { className: "row" }, element("h2", {}, heading), ...badges, ...tools);
  const header = element("header", { className: "stack tight" }, title, about ? element("p", { className: "description soft" }, about) : "");
  return [element("article", { className: "card stack", "aria-label": heading }, header, form, ...extra), status, output];
}

async function toggle(follow, form, status, { read, watch }) {
  if (follow.ariaPressed === "true") {
    watching.abort(new Error("No longer watched."));
    return;
  }
  const params = read();
  if (params === null) return;
  const mine = (watching = new AbortController());
  mine.signal.addEventListener("abort", () => (follow.ariaPressed = "false"));
  follow.ariaPressed = "true";
  try {
    await watch(params, mine.signal, () => form.requestSubmit());
  } catch (error) {
    if (!mine.signal.aborted) status.textContent = say(error);
    mine.abort();
  }
}

/** Run, show how far it is, then what came of it. Gives the outcome in a word. */
async function perform(output, draw, run) {
  const bar = element("progress", { "aria-label": "Progress" });
  const step = element("p", { className: "soft small" }, "Running…");
  output.replaceChildren(bar, step);
  output.hidden = false;
  const started = performance.now();
  const progress = ({ progress: value, total, message }) => {
    if (total) Object.assign(bar, { max: total, value });
    step.textContent = [message, total ? `${figure(value)} of ${figure(total)}` : figure(value)].filter(Boolean).join(", ");
  };
  const outcome = (text, look, ...nodes) => {
    const took = element("span", { className: "soft small" }, `${figure(performance.now() - started)} ms`);
    output.replaceChildren(element("div", { className: "row" }, element("span", { className: `badge ${look}` }, text), took), ...nodes);
    return text;
  };
  try {
    const result = await run({ progress });
    const raw = element("details", {}, element("summary", {}, "Raw result"), element("pre", { tabIndex: 0, "aria-label": "Raw result" }, pretty(result)));
    const content = element("div", { className: "content" }, ...draw(result));
    return result.isError === true ? outcome("Tool error", "bad", content, raw) : outcome("Done", "good", content, raw);
  } catch (error) {
    const data = error instanceof RpcError && error.data !== undefined ? [element("pre", { tabIndex: 0, "aria-label": "Data of the error" }, pretty(error.data))] : [];
    return outcome("Failed", "bad", element("p", { className: "notice bad" }, say(error)), ...data);
  }
}
