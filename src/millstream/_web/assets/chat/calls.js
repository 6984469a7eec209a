// Tool calls within an answer: each is a collapsible card with its arguments, result, and duration. It asks for approval
// of calls that may change something.

import { $, element, icon, makeButton, ms, onSubmit, pre, pretty, swap, wrapped, write } from "../dom.js";
import { colored, jsonBlock } from "../render/json.js";
import { looksLikeMarkdown, markdownBlock } from "../render/markdown.js";
import { schemaForm } from "../schema/form.js";
import { copyable, guard } from "../shell/controls.js";

/** @type {Record<string, [string, string, string]>} by outcome: shape, look, and word */
const LOOKS = {
  done: ["check", "good", ""],
  error: ["alert", "bad", "Tool error"],
  refused: ["close", "warn", "Declined"],
  invalid: ["alert", "bad", "Invalid call"],
  stopped: ["stop", "warn", "Stopped"]
};
const PREVIEW = 120;

/** @param {Json} given */
const preview = (given) =>
  Object.entries(given)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(", ")
    .slice(0, PREVIEW);

/** Render the text of a result as JSON, Markdown, or plain text. @param {string} text */
function result(text) {
  try {
    if (/^\s*[[{]/.test(text)) {
      const whole = pretty(JSON.parse(text));
      return copyable(pre("Result", ...colored(whole)), "Copy the result", () => whole);
    }
  } catch {
    // It only looks like JSON.
  }
  if (looksLikeMarkdown(text)) return markdownBlock(text, { role: "group", "aria-label": "Result" });
  return copyable(wrapped("Result", "auto", text || "(nothing)"), "Copy the result", () => text);
}

export class Card {
  id = ""; // of the call, once it runs
  over = false;
  allowed = false;
  #shown = icon("play");
  #time = element("span", "took soft small");
  #word = element("span", { className: "badge", hidden: true });
  #summary = element("summary");
  #body = element("div", "call-body stack tight");
  /** @type {HTMLElement | null} */
  #asked = null;
  /** @type {{node: HTMLElement, bar: HTMLProgressElement, says: HTMLElement} | null} */
  #progress = null;

  /** @param {{tool: string, given: Json}} call */
  constructor({ tool, given }) {
    this.tool = tool;
    this.given = given;
    this.#summary.append(
      this.#shown,
      element("code", "call-name", tool),
      element("span", { className: "soft small one-line grow", dir: "auto" }, preview(given)),
      this.#word,
      this.#time
    );
    this.#body.append(element("p", "soft small", "Arguments"), jsonBlock(given, `Arguments of ${tool}`));
    this.node = element("details", "call", this.#summary, this.#body);
    this.node.addEventListener("toggle", () => (this.node.open ||= this.waits)); // keep a pending question visible
  }

  /**
   * Ask the user to approve the call. `upstream` is the one that it goes to, if any.
   *
   * @param {{description?: string, upstream?: string}} call
   * @param {(decision: string) => void} decide
   */
  requestApproval({ description, upstream }, decide) {
    this.node.open = true;
    this.node.classList.add("asks");
    swap(this.#shown, "help");
    /** @param {string} says @param {string} decision @param {string} look */
    const choice = (says, decision, look) =>
      makeButton(
        look,
        () => {
          this.allowed = decision !== "decline";
          this.#endAsking();
          decide(decision);
          $("question").focus();
        },
        says
      );
    const buttons = [
      choice("Approve", "approve", "primary"),
      choice("Approve, and don't ask again for this tool", "always", ""),
      choice("Decline", "decline", "quiet")
    ];
    const asked = element(
      "div",
      { className: "stack tight", role: "group", "aria-label": `Allow ${this.tool} to run?` },
      element(
        "p",
        { role: "status", dir: "auto" },
        element("strong", {}, upstream ? `Allow this call to ${upstream}?` : "Allow this call?")
      ),
      element("p", { className: "about", dir: "auto" }, description || "The tool has no description."),
      element("div", "row", ...buttons)
    );
    this.#asked = asked;
    this.#body.append(asked);
    guard(asked, buttons);
  }

  /** Whether approval is pending. */
  get waits() {
    return Boolean(this.#asked);
  }

  #endAsking() {
    this.#asked?.remove();
    this.#asked = null;
    this.node.classList.remove("asks");
    this.node.open = false;
  }

  /** @param {string} id */
  run(id) {
    this.id = id;
    this.node.classList.add("running");
    swap(this.#shown, "reload");
    write(this.#time, "running");
  }

  /** @param {number} value @param {number | undefined} total @param {string | undefined} message */
  progress(value, total, message) {
    if (!this.#progress) {
      const bar = element("progress", { "aria-label": `Progress of ${this.tool}` });
      const says = element("p", { className: "soft small", dir: "auto" });
      this.#progress = { node: element("div", "stack tight", bar, says), bar, says };
      this.#body.append(this.#progress.node);
    }
    const { bar, says } = this.#progress;
    if (total) [bar.max, bar.value] = [total, value];
    write(says, message ?? "");
    write(this.#time, message || (total ? `${Math.round((100 * value) / total)} %` : "running"));
  }

  /** @param {{text: string, outcome: string, milliseconds?: number}} end */
  settle({ text, outcome, milliseconds }) {
    this.over = true;
    this.#endAsking();
    this.#progress?.node.remove();
    const [shape, look, word] = LOOKS[outcome] ?? LOOKS.error;
    this.node.classList.remove("running");
    this.node.classList.add(look);
    swap(this.#shown, shape);
    write(this.#word, word);
    this.#word.className = `badge ${look}`;
    this.#word.hidden = !word;
    write(this.#time, milliseconds === undefined || outcome === "refused" ? "" : ms(milliseconds));
    if (outcome !== "refused" && text) this.#body.append(element("p", "soft small", "Result"), result(text));
  }

  /** Mark the call as stopped if it hasn't finished. */
  stop() {
    if (!this.over) this.settle({ text: "", outcome: "stopped" });
  }
}

/**
 * Create the card for a question of a tool: a form, or a URL to open. `fill` receives the values, or null.
 *
 * @param {{id: string, message: string, url?: string, schema?: Schema}} question
 * @param {(values: Json | null) => void} fill
 */
export function formCard({ id, message, url, schema }, fill) {
  const form = url ? null : schemaForm(schema ?? {}, { id: `fill-${id}`, label: "Answer as JSON" });
  const address = url && element("pre", { className: "wrap", tabIndex: 0, "aria-label": "Address" }, url);
  const accept = element("button", { type: "submit", className: "primary" }, url ? "Open" : "Send");
  const decline = makeButton("quiet", () => end(null, "Declined."), "Decline");
  const buttons = [accept, decline];
  const node = element(
    "form",
    { className: "call asks form stack tight", noValidate: true, "aria-label": message },
    element("p", { dir: "auto", role: "status" }, element("strong", {}, message)),
    ...(form ? [form.toolbar, form.node, form.summary] : [address]),
    element("div", "row", ...buttons)
  );
  guard(node, buttons);
  /** @param {Json | null} values @param {string} says */
  const end = (values, says) => {
    node.replaceChildren(element("p", { className: "soft small", dir: "auto" }, `${message} ${says}`));
    node.classList.remove("asks");
    fill(values);
    $("question").focus();
  };
  onSubmit(node, () => {
    if (url) {
      if (!/^https?:\/\//i.test(url)) return;
      open(url, "_blank", "noopener,noreferrer");
      return end({}, "Opened.");
    }
    const values = form?.read() ?? null;
    if (values !== null) end(values, "Answered.");
  });
  return node;
}
