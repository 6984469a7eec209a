// The detail view of an item: its form, its progress while it runs, and its result.

import { closeApps } from "../apps/view.js";
import { count, element, figure, fold, icon, lazyDetails, makeButton, ms, onSubmit, reveal } from "../dom.js";
import { RpcError } from "../mcp/transports.js";
import { jsonBlock, tree } from "../render/json.js";
import { rowsOf, rowTable, views } from "../render/content.js";
import { markdownBlock } from "../render/markdown.js";
import { validate } from "../schema/validate.js";
import { copy, copyable } from "../shell/controls.js";

/** @type {AbortController | null} */
let running = null;
/** @type {AbortController | null} */
let watching = null;

const canceled = (byPerson = false) => Object.assign(new Error("Canceled."), { name: "AbortError", byPerson });

/** Cancel what is running in the detail view. */
export function cease() {
  running?.abort(canceled());
  watching?.abort(new Error("No longer watched."));
  closeApps();
}

/** Return the displayed text of an error. @param {any} error */
export function say(error) {
  const code = error instanceof RpcError ? ` (${error.code})` : "";
  return error.name === "TypeError" ? "The server can't be reached." : `${error.message}${code}`;
}

/** @typedef {{progress: (step: Json) => void, place: (node: Node) => void, signal: AbortSignal}} SendOptions */
/** @typedef {{text: string, good: boolean, ms: number, result: Json | null}} Outcome */
/**
 * @typedef {object} Work an item in the detail view
 * @property {string} heading
 * @property {string} [sub] a name or URI
 * @property {string} [about] Markdown
 * @property {Node[]} [badges]
 * @property {Json} [form] returned by `schemaForm`, for an item with input
 * @property {Node[]} [parts] fields instead of a form
 * @property {(force: boolean) => Json | null} [read] returns the values, or null if they're invalid; those
 *   of the form by default
 * @property {(values: Json) => {method: string, params: Json}} request returns the request for the values
 * @property {(method: string, params: Json, options: SendOptions) => Promise<Json>} send
 * @property {(result: Json) => Node[]} draw
 * @property {((values: Json, result: Json | null) => Node) | null} [app] shows a result in an app of the server; null
 *   if the user canceled the call
 * @property {string} verb
 * @property {Json} [outputSchema]
 * @property {((params: Json, signal: AbortSignal, changed: () => void) => Promise<void>) | null} [watch] subscribes to
 *   changes; each change runs it again
 * @property {Array<{title: string, text: (request: Json, values: Json) => string}>} [copies] entries of "Copy as"
 * @property {((values: Json, outcome: Outcome) => void) | null} [done] called after each run
 * @property {(() => void) | null} [reset] resets the form
 * @property {(error: Error, values: Json) => Node | null} [remedy] returns a node that helps with an error, if any
 * @property {((values: Json, last: Outcome | null) => void) | null} [save] saves the call; `last` is its newest outcome
 * @property {Node[]} [extra]
 * @property {boolean} [begins] runs immediately
 * @property {string} [stops] label of the cancel button
 * @property {boolean} [raw] false if the result isn't a message
 */

/** Return the nodes of the detail view. @param {Work} work */
export function bench(work) {
  const {
    heading,
    sub = "",
    about,
    badges = [],
    form = null,
    parts = [],
    read = form ? form.read : () => ({}),
    verb,
    watch = null,
    reset = null,
    save = null,
    copies = [],
    extra = [],
    begins = false,
    stops = "Cancel"
  } = work;
  const button = element(
    "button",
    { className: "primary", type: "submit", title: "Ctrl-Enter runs it from any field" },
    icon("play"),
    verb
  );
  const cancel = element("button", { type: "button", hidden: true }, icon("stop"), stops);
  const force = makeButton({ hidden: true }, () => start(true), `${verb} anyway`);
  const follow = makeButton(
    { "aria-pressed": "false", hidden: !watch },
    () => toggle(follow, node, status, work, read),
    icon("eye"),
    "Watch"
  );
  const anew = makeButton(
    { className: "quiet", title: "Back to the defaults", hidden: !reset },
    () => reset?.(),
    "Reset"
  );
  /** @param {{text: (request: Json, values: Json) => string}} copy */
  const copied = ({ text }) => {
    const values = read(true);
    if (!values || !as) return;
    copy(text(work.request(values), values));
    as.open = false;
    as.querySelector("summary")?.focus(); // instead of the button, which is hidden now
  };
  const as = copies.length
    ? fold("Copy as", ...copies.map((each) => makeButton({ className: "quiet" }, () => copied(each), each.title)))
    : null;
  /** @type {Outcome | null} */
  let last = null;
  const keep = makeButton(
    { className: "quiet", title: "Keep this call, with checks of its result", hidden: !save },
    () => {
      const values = read(true);
      if (values) save?.(values, last);
    },
    icon("add"),
    "Save call"
  );
  const summary = form?.summary ?? "";
  const node = element(
    "form",
    { "aria-label": heading, noValidate: true },
    ...(form ? [form.node] : parts),
    summary,
    element("div", "row actions", button, force, cancel, follow, as, keep, anew)
  );
  const output = element("section", { className: "card result", "aria-label": "Result", hidden: true });
  const status = element("p", { className: "visually-hidden", role: "status" });

  /** @param {boolean} forced */
  const start = async (forced) => {
    const values = button.ariaDisabled === "true" ? null : read(forced);
    force.hidden = values !== null || !form || form.summary.hidden;
    if (values === null) return;
    const stop = new AbortController();
    running = stop;
    cancel.onclick = () => stop.abort(canceled(true));
    cancel.hidden = false;
    // Not `disabled`, because the focus returns here after a question.
    button.ariaDisabled = "true";
    status.textContent = "Running";
    const outcome = await perform(output, work, values, stop.signal);
    status.textContent = outcome.text;
    last = outcome;
    reveal(output);
    work.done?.(values, outcome);
    button.ariaDisabled = null;
    if (document.activeElement === cancel) button.focus();
    cancel.hidden = true;
  };
  onSubmit(node, () => start(false));
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    node.requestSubmit();
  });
  node.addEventListener("input", () => (force.hidden = true));
  if (begins) queueMicrotask(() => node.isConnected && start(true));
  const title = element(
    "div",
    "row title",
    element("h2", { dir: "auto" }, heading),
    ...badges,
    element("span", "spacer"),
    form?.toolbar ? form.toolbar : null
  );
  const header = element(
    "header",
    "stack tight",
    title,
    sub ? element("p", { className: "sub code soft", dir: "auto" }, sub) : "",
    about ? markdownBlock(about, { className: "markdown soft" }) : ""
  );
  return [
    element(
      "article",
      { className: "card stack", "aria-label": heading },
      header,
      node,
      extra.length ? element("div", "folds", ...extra) : null
    ),
    status,
    output
  ];
}

/**
 * @param {HTMLElement} follow
 * @param {HTMLFormElement} form
 * @param {HTMLElement} status
 * @param {Work} work
 * @param {(force: boolean) => Json | null} read
 */
async function toggle(follow, form, status, work, read) {
  if (follow.ariaPressed === "true") {
    watching?.abort(new Error("No longer watched."));
    return;
  }
  const values = read(false);
  if (values === null) return;
  const mine = new AbortController();
  watching = mine;
  mine.signal.addEventListener("abort", () => (follow.ariaPressed = "false"));
  follow.ariaPressed = "true";
  try {
    await work.watch?.(work.request(values).params, mine.signal, () => form.requestSubmit());
  } catch (error) {
    if (!mine.signal.aborted) status.textContent = say(error);
    mine.abort();
  }
}

/**
 * Run it, and show its progress and its outcome.
 *
 * @param {HTMLElement} output
 * @param {Work} work
 * @param {Json} values
 * @param {AbortSignal} signal
 */
async function perform(output, work, values, signal) {
  const bar = element("progress", { "aria-label": "Progress" });
  const step = element("p", "soft small", "Running…");
  output.replaceChildren(bar, step);
  output.hidden = false;
  await closeApps();
  const started = performance.now();
  /** @param {Node} node */
  const place = (node) => output.append(node);
  /** @param {Json} step */
  const progress = ({ progress: value, total, message }) => {
    if (total) Object.assign(bar, { max: total, value });
    /** @param {number} number */
    const amount = (number) => (Number.isInteger(number) ? count(number) : figure(number));
    const done = total ? `${amount(value)} of ${amount(total)}` : value === undefined ? "" : amount(value);
    step.textContent = message?.includes(`${value} of ${total}`) ? message : [message, done].filter(Boolean).join(", ");
  };
  /** @type {Json | null} */
  let result = null;
  /** @param {string} text @param {string} look @param {...(Node | string)} nodes */
  const outcome = (text, look, ...nodes) => {
    const took = performance.now() - started;
    output.replaceChildren(
      element("div", "row", element("span", `badge ${look}`, text), element("span", "soft small", ms(took))),
      ...nodes
    );
    return { text, good: look === "good", ms: took, result };
  };
  try {
    const { method, params } = work.request(values);
    result = await work.send(method, params, { progress, place, signal });
    const shown = [...(work.app ? [work.app(values, result)] : []), ...results(result, work)];
    return result.isError === true ? outcome("Tool error", "bad", ...shown) : outcome("Done", "good", ...shown);
  } catch (/** @type {any} */ error) {
    if (error.name === "AbortError")
      return outcome("Canceled", "warn", ...(work.app && error.byPerson ? [work.app(values, null)] : []));
    const data =
      error instanceof RpcError && error.data !== undefined ? [jsonBlock(error.data, "Data of the error")] : [];
    const remedy = work.remedy?.(error, values) ?? null;
    return outcome("Failed", "bad", element("p", "notice bad", say(error)), ...(remedy ? [remedy] : data));
  }
}

/** @param {unknown} value */
const plain = (value) => value === null || typeof value !== "object";

/**
 * Unwrap a value that the server wrapped as `{result: …}`, because the protocol requires an object.
 *
 * @param {any} value
 */
const bare = (value) => (!plain(value) && Object.keys(value).join() === "result" ? value.result : value);

/**
 * Whether the content only repeats the structured value, as servers do for older clients.
 *
 * @param {any} content
 * @param {any} structured
 */
function same(content, structured) {
  if (structured === undefined || content?.length !== 1 || content[0]?.type !== "text") return false;
  const wanted = [structured, bare(structured)];
  if (wanted.includes(content[0].text)) return true;
  try {
    const found = JSON.stringify(JSON.parse(content[0].text));
    return wanted.some((each) => JSON.stringify(each) === found);
  } catch {
    return false;
  }
}

/**
 * Render a result without repetition: content, structured content with its problems, and the raw result.
 *
 * @param {Json} result
 * @param {Work} work
 */
function results(result, { draw, outputSchema, raw: came = true }) {
  const structured = result.structuredContent;
  const twice = same(result.content, structured);
  const shown = twice && !plain(bare(structured)) ? [] : [element("div", "content", ...draw(result))];
  if (structured !== undefined || (outputSchema && result.isError !== true))
    shown.push(check(structured, outputSchema, twice));
  if (!came) return shown;
  const raw = lazyDetails("", element("summary", {}, "Raw result"), () => [
    copyable(jsonBlock(result, "Raw result"), "Copy the raw result")
  ]);
  return [...shown, raw];
}

/**
 * Create the views of a structured value: a table if it's a list of objects, a tree, and JSON.
 *
 * @param {unknown} value
 * @param {Array<{path: Path, message: string}>} problems
 */
function structuredViews(value, problems) {
  const rows = rowsOf(value);
  const json = () => copyable(jsonBlock(value, "Structured content"), "Copy the structured content");
  /** @type {Array<[string, () => Node]>} */
  const table = rows && !problems.length ? [["Table", () => rowTable(rows)]] : [];
  return views([...table, ["Tree", () => tree(value, problems)], ["JSON", json]]);
}

/**
 * Render a structured value and its validation; `told` is true if the content shows the same value.
 *
 * @param {unknown} value
 * @param {Schema | undefined} schema
 * @param {boolean} told
 */
function check(value, schema, told) {
  const problems = schema
    ? value === undefined
      ? [{ path: [], message: "The tool has an output schema, but its result has no structured content." }]
      : validate(value, schema)
    : [];
  const verdict = !schema
    ? element("span", "badge", "no output schema")
    : problems.length
      ? element("span", "badge bad", problems.length === 1 ? "1 deviation" : `${problems.length} deviations`)
      : element("span", "badge good", "fits the schema");
  const list = problems.length
    ? element(
        "ul",
        { className: "problems", "aria-label": "Deviations from the output schema" },
        ...problems.map(({ path, message }) =>
          element("li", {}, element("code", {}, path.join(".") || "(whole)"), ` ${message}`)
        )
      )
    : null;
  const again = value === undefined || (told && plain(bare(value)) && !problems.length); // already shown
  if (again && value !== undefined)
    return element("p", "row soft small", "As structured content, it's the same value.", verdict);
  const { node, bar } = again ? { node: "", bar: "" } : structuredViews(value, problems);
  return element(
    "div",
    "structured stack tight",
    element("div", "row", element("h3", {}, "Structured content"), verdict, element("span", "spacer"), bar),
    list,
    node
  );
}
