// What a server asks its client, put to the person one at a time: elicitations (forms and links), samplings, roots.
// Each answer is the bare result; both eras carry it, each in its way.

import { $, element, pretty } from "./dom.js";
import { collect, fields } from "./forms.js";

let turn = Promise.resolve();

/** Ask the person. Rejects where the kind of question cannot say no in its result. */
export function ask(method, params, signal) {
  const make = KINDS[method];
  if (!make) return Promise.reject(new Error(`This client doesn't know ${method}.`));
  const answer = turn.then(() => put(make(params), signal));
  turn = answer.catch(() => {});
  return answer;
}

/** Show a question: `{kind, title, body, accept(), decline(), accepts, declines}`. */
function put(question, signal) {
  const dialog = $("question");
  $("question-kind").textContent = question.kind;
  $("question-title").textContent = question.title;
  $("question-body").replaceChildren(...question.body);
  $("question-accept").textContent = question.accepts ?? "Accept";
  $("question-decline").hidden = !question.decline;
  $("question-error").hidden = true;
  return new Promise((resolve, reject) => {
    const over = new AbortController();
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
    const on = (node, type, handle) => node.addEventListener(type, handle, { signal: over.signal });
    on($("question-form"), "submit", (event) => {
      event.preventDefault();
      const content = question.accept();
      if (content !== null) finish(() => content);
    });
    on($("question-decline"), "click", () => finish(() => question.decline()));
    on($("question-cancel"), "click", () => finish(question.cancel));
    on(dialog, "cancel", (event) => {
      event.preventDefault();
      finish(question.cancel);
    });
    if (signal) on(signal, "abort", () => finish(() => { throw signal.reason; }));
    if (signal?.aborted) finish(() => { throw signal.reason; });
    else dialog.showModal();
  });
}

const refuse = (what) => () => {
  throw new Error(`The person didn't ${what}.`);
};

function elicitation(params) {
  const say = (action) => () => ({ action });
  const common = { decline: say("decline"), cancel: say("cancel"), title: params.message };
  if (params.mode === "url") return link(params, common);
  const list = fields(params.requestedSchema ?? {}, params.requestedSchema ?? {}, "question-field");
  const accept = () => {
    const content = collect(list);
    return content === null ? null : { action: "accept", content };
  };
  return { ...common, kind: "The server asks", body: list.map((each) => each.node), accept };
}

function link(params, common) {
  const safe = /^https?:\/\//i.test(params.url);
  const body = [
    element("p", {}, "The server wants to send you to this address. Check it before you go:"),
    element("pre", { className: "wrap", tabIndex: 0, "aria-label": "Address" }, params.url),
  ];
  const accept = () => {
    if (!safe) {
      $("question-error").textContent = "This page only opens web addresses.";
      $("question-error").hidden = false;
      return null;
    }
    open(params.url, "_blank", "noopener,noreferrer");
    return { action: "accept" };
  };
  return { ...common, kind: "The server sends you a link", body, accept, accepts: "Open" };
}

function sampling(params) {
  const asked = (params.messages ?? []).map((message) => {
    const text = [message.content].flat().map((block) => block.text ?? pretty(block)).join("\n");
    return element("pre", { className: "wrap", tabIndex: 0, "aria-label": `Message of the ${message.role}` }, text);
  });
  const reply = element("textarea", { id: "question-reply", required: true });
  const field = element("div", { className: "field" }, element("label", { htmlFor: "question-reply" }, "Reply of the model"), reply);
  const accept = () => ({ role: "assistant", content: { type: "text", text: reply.value }, model: "person", stopReason: "endTurn" });
  const system = params.systemPrompt ? [element("p", { className: "soft" }, params.systemPrompt)] : [];
  return {
    kind: "The server asks for a completion", title: "What does the model say?", body: [...system, ...asked, field],
    accept, decline: refuse("allow the sampling"), cancel: refuse("answer"),
  };
}

function roots() {
  const lines = element("textarea", { id: "question-roots", placeholder: "file:///home/me/project" });
  const hint = element("span", { className: "hint", id: "question-roots-hint" }, "Enter one file:// address per line. You can leave this empty.");
  lines.setAttribute("aria-describedby", hint.id);
  const field = element("div", { className: "field" }, element("label", { htmlFor: "question-roots" }, "Roots"), lines, hint);
  const accept = () => ({ roots: lines.value.split(/\s+/).filter(Boolean).map((uri) => ({ uri })) });
  return { kind: "The server asks for roots", title: "Which folders may it know?", body: [field], accept, cancel: refuse("answer") };
}

const KINDS = { "elicitation/create": elicitation, "sampling/createMessage": sampling, "roots/list": roots };
