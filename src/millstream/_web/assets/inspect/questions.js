// Questions of the server to the user, one at a time: elicitation (forms and links), sampling, and roots. Answers are
// results, which the client sends as the era requires.

import { $, element, facts, firstVisible, labeled, pretty, segments, showText } from "../dom.js";
import { nodes } from "../render/content.js";
import { schemaForm } from "../schema/form.js";
import { guard } from "../shell/controls.js";
import { roots } from "./settings.js";

/**
 * @typedef {object} Question
 * @property {string} kind
 * @property {string} title
 * @property {Node[]} body
 * @property {HTMLElement | null} [turn] switches from form to JSON
 * @property {() => Json | null} accept returns the answer, or null if it's invalid
 * @property {() => any} [decline]
 * @property {() => any} cancel
 * @property {string} [accepts] text of the button
 */

/** @type {Promise<unknown>} */
let turn = Promise.resolve();
let made = 0;

/**
 * Ask the user. Rejects if they decline and the result can't express that.
 *
 * @param {string} method
 * @param {Json} params
 * @param {AbortSignal} [signal]
 */
export function ask(method, params, signal) {
  if (!Object.hasOwn(KINDS, method))
    return Promise.reject(Object.assign(new Error(`This client doesn't support ${method}.`), { code: -32601 }));
  if (method === "roots/list" && roots().length) return Promise.resolve({ roots: roots() });
  const answer = turn.then(() => put(KINDS[method](params), signal));
  turn = answer.catch(() => {});
  return answer;
}

/**
 * Show a question.
 *
 * @param {Question} question
 * @param {AbortSignal | undefined} signal
 * @returns {Promise<any>}
 */
function put(question, signal) {
  /** @type {HTMLDialogElement} */
  const dialog = $("question");
  $("question-kind").textContent = question.kind;
  $("question-title").textContent = question.title;
  $("question-switch").replaceChildren(...(question.turn ? [question.turn] : []));
  $("question-body").replaceChildren(...question.body);
  $("question-accept").textContent = question.accepts ?? "Accept";
  $("question-decline").hidden = !question.decline;
  $("question-error").hidden = true;
  return new Promise((resolve, reject) => {
    const over = new AbortController();
    /** @param {() => Json | null} act */
    const finish = (act) => {
      over.abort();
      dialog.close();
      $("question-body").replaceChildren();
      try {
        resolve(act());
      } catch (error) {
        reject(error);
      }
    };
    /** @param {EventTarget} node @param {string} type @param {(event: Event) => void} handle */
    const on = (node, type, handle) => node.addEventListener(type, handle, { signal: over.signal });
    on($("question-form"), "submit", (event) => {
      event.preventDefault();
      const content = $("question-accept").disabled ? null : question.accept();
      if (content !== null) finish(() => content);
    });
    on($("question-decline"), "click", () => finish(() => question.decline?.()));
    on($("question-cancel"), "click", () => finish(question.cancel));
    on(dialog, "cancel", (event) => {
      event.preventDefault();
      finish(question.cancel);
    });
    if (signal)
      on(signal, "abort", () =>
        finish(() => {
          throw signal.reason;
        })
      );
    if (signal?.aborted)
      finish(() => {
        throw signal.reason;
      });
    else {
      dialog.showModal();
      guard(
        dialog,
        ["question-accept", "question-decline", "question-cancel"].map((id) => $(id)),
        over.signal
      );
      // Focus the first input, not the content above it.
      firstVisible($("question-body"), "input, select, textarea")?.focus();
    }
  });
}

/** @param {string} what */
const refuse = (what) => () => {
  throw Object.assign(new Error(`The user didn't ${what}.`), { code: -1 });
};

/** @param {Json} params */
function elicitation(params) {
  /** @param {string} action */
  const say = (action) => () => ({ action });
  const common = { decline: say("decline"), cancel: say("cancel"), title: params.message };
  if (params.mode === "url") return link(params, common);
  const form = schemaForm(params.requestedSchema ?? {}, { id: `question-${++made}`, label: "Answer as JSON" });
  const accept = () => {
    const content = form.read();
    return content === null ? null : { action: "accept", content };
  };
  return { ...common, kind: "The server asks", turn: form.toolbar, body: [form.node, form.summary], accept };
}

/** @param {Json} params @param {Pick<Question, "title" | "decline" | "cancel">} common @returns {Question} */
function link(params, common) {
  const safe = /^https?:\/\//i.test(params.url);
  const body = [
    element("p", {}, "The server wants you to open this address. Check it first:"),
    element("pre", { className: "wrap", tabIndex: 0, "aria-label": "Address" }, params.url)
  ];
  const accept = () => {
    if (!safe) {
      showText($("question-error"), "This page only opens web addresses.");
      return null;
    }
    open(params.url, "_blank", "noopener,noreferrer");
    return { action: "accept" };
  };
  return { ...common, kind: "The server sends you a link", body, accept, accepts: "Open" };
}

const REPLY = {
  type: "object",
  required: ["reply"],
  properties: {
    reply: { type: "string", title: "Reply of the model" },
    model: { type: "string", title: "Model", default: "person" },
    stopReason: {
      type: "string",
      title: "Why it stopped",
      enum: ["endTurn", "maxTokens", "stopSequence", "toolUse"],
      default: "endTurn"
    }
  }
};

/** Let the user answer as the model: as text, or as a JSON result that may contain tool calls. @param {Json} params */
function sampling(params) {
  const asked = (params.messages ?? []).map((/** @type {Json} */ message) =>
    element(
      "div",
      `said ${message.role}`,
      element("p", "soft small", message.role),
      ...[message.content].flat().flatMap((each) => nodes(each, () => {}))
    )
  );
  const limits = facts({
    "System prompt": params.systemPrompt,
    "At most": params.maxTokens && `${params.maxTokens} tokens`,
    Temperature: params.temperature,
    Stop: params.stopSequences?.join(", "),
    Models: params.modelPreferences && pretty(params.modelPreferences),
    Tools: params.tools?.map((/** @type {Json} */ { name }) => name).join(", ")
  });
  const form = schemaForm(REPLY, { id: `question-${++made}`, label: "Result as JSON" });
  const whole = { role: "assistant", content: { type: "text", text: "" }, model: "person", stopReason: "endTurn" };
  const raw = schemaForm({ type: "object" }, { id: `question-${++made}`, label: "Result as JSON" });
  raw.write(whole);
  raw.node.hidden = true;
  const { bar: turn, mark } = segments("Edit as", ["Form", "JSON"], (name) => {
    raw.node.hidden = name === "Form";
    form.node.hidden = !raw.node.hidden;
    mark(name);
  });
  mark("Form");
  const accept = () => {
    if (!raw.node.hidden) return raw.read();
    const found = form.read();
    return (
      found && {
        role: "assistant",
        content: { type: "text", text: found.reply },
        model: found.model ?? "person",
        stopReason: found.stopReason ?? "endTurn"
      }
    );
  };
  return {
    kind: "The server asks for a completion",
    title: "What should the model answer?",
    body: [element("dl", "facts", ...limits), ...asked, form.node, raw.node, form.summary],
    turn,
    accept,
    decline: refuse("allow the sampling"),
    cancel: refuse("answer")
  };
}

function asked() {
  const lines = element("textarea", { id: "question-roots", placeholder: "file:///home/me/project" });
  const hint = element(
    "span",
    { className: "hint", id: "question-roots-hint" },
    "Enter one file:// address per line. You can leave this empty. Roots that you set under Server are sent without asking."
  );
  lines.setAttribute("aria-describedby", hint.id);
  const field = labeled("Roots", lines, hint);
  const accept = () => ({
    roots: lines.value
      .split(/\s+/)
      .filter(Boolean)
      .map((uri) => ({ uri }))
  });
  return {
    kind: "The server asks for roots",
    title: "Which folders do you share?",
    body: [field],
    accept,
    cancel: refuse("answer")
  };
}

/** @type {Record<string, (params: Json) => Question>} */
const KINDS = { "elicitation/create": elicitation, "sampling/createMessage": sampling, "roots/list": asked };
