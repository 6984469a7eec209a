// The playground: a conversation with a model that uses the server's tools. It lasts as long as its WebSocket. The server
// runs the model and the calls; this page shows them, and asks the user for approval.

import { listTools } from "./tool.js";
import { $, element, icon, makeButton, onSubmit, showText, wrapped, write } from "../dom.js";
import { markdown } from "../render/markdown.js";
import { copyable } from "../shell/controls.js";
import { labelsOf } from "../shell/names.js";
import { commands, shortcut } from "../shell/palette.js";
import { errorMessage } from "../hub.js";
import { Card, formCard } from "./calls.js";
import { End } from "./end.js";
import { room } from "./rooms.js";

const SHOWN_TOOLS = 200;

/** @typedef {{body: HTMLElement, text: {node: HTMLElement, all: string, waits: boolean} | null, cards: Card[]}} Turn */

/** @type {Json | null} {state, model, reason} of the server */
let state = null;
/** @type {WebSocket | null} */
let socket = null;
let busy = false;
/** @type {Turn | null} the current answer */
let turn = null;

// Drawing

const end = new End($("answers"), $("answers-newer"));

/** Append a node to the answer. @param {Node} node */
function add(node) {
  if (!turn) return;
  turn.text = null;
  turn.body.append(node);
  end.stay(busy);
}

/** @param {string} text */
function begin(text) {
  $("welcome").hidden = true;
  const body = element("div", "answer");
  const asked = element(
    "li",
    "message own first",
    element("header", "visually-hidden", "You"),
    element("div", { className: "bubble", dir: "auto" }, element("p", {}, text))
  );
  $("turns").append(asked, element("li", { className: "turn", "aria-label": "Answer" }, body));
  turn = { body, text: null, cards: [] };
  end.scroll();
}

/** Append text to the answer, drawn once per frame. @param {Turn} answer @param {string} piece */
function grow(answer, piece) {
  const text = answer.text ?? { node: element("div", { className: "markdown", dir: "auto" }), all: "", waits: false };
  if (!answer.text) answer.body.append(text.node);
  answer.text = text;
  text.all += piece;
  if (text.waits) return;
  text.waits = true;
  requestAnimationFrame(() => {
    text.waits = false;
    text.node.dir = "";
    text.node.replaceChildren(...markdown(text.all));
    text.node.dir = "auto";
    end.stay(busy);
  });
}

/** @param {string} text */
const remark = (text, look = "") =>
  add(
    element(
      "p",
      { className: `remark ${look}`, role: look === "bad" ? "alert" : null },
      icon(look === "bad" ? "alert" : "help"),
      element("span", {}, text)
    )
  );

/** @param {unknown} one @param {unknown} other */
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
/** @param {Json} message */
const send = (message) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

/** @param {boolean} on */
function work(on, says = "") {
  busy = on;
  $("ask").hidden = on;
  $("stop").hidden = !on;
  write($("activity"), says);
}

/** Append the card of a call that had no question. @param {Card[]} cards @param {string} tool @param {Json} given */
function newCard(cards, tool, given) {
  const card = new Card({ tool, given });
  cards.push(card);
  add(card.node);
  return card;
}

/** @type {Record<string, string>} why an answer ended early */
const ENDS = {
  rounds: "Stopped: the model reached the limit of tool calls for one answer.",
  tokens: "Stopped: the answer reached its limit of tokens.",
  length: "The model reached its own limit of length.",
  filtered: "The model's API filtered the answer."
};

/** @type {Record<string, (message: Json, answer: Turn) => void>} handlers of the server's messages by type */
const HANDLERS = {
  round_start: () => write($("activity"), "The model is thinking…"),
  delta: ({ text }, answer) => {
    write($("activity"), "The model is writing…");
    grow(answer, text);
  },
  assistant_message: (_, answer) => (answer.text = null),
  model_retry: ({ seconds, reason, void: empty }, answer) => {
    if (empty) answer.text?.node.remove();
    answer.text = null;
    write($("activity"), `${reason} Trying again in ${Math.ceil(seconds)} s.`);
  },
  approval: ({ id, kind, tool, upstream, description, arguments: given, text }, { cards }) => {
    write($("activity"), "The model is waiting for you.");
    const card = new Card({
      tool: kind === "sampling" ? "The server wants to ask the model" : tool,
      given: kind === "sampling" ? { text } : given
    });
    card.requestApproval({ description, upstream }, (decision) => {
      send({ type: "decide", id, decision });
      write($("activity"), "The model is working…");
      if (kind === "sampling") card.settle({ outcome: decision === "decline" ? "refused" : "done", text: "" });
    });
    cards.push(card);
    add(card.node);
  },
  question: ({ id, message, url, schema }) => {
    write($("activity"), "A tool is waiting for you.");
    add(formCard({ id, message, url, schema }, (values) => send({ type: "fill", id, values })));
  },
  tool_start: ({ id, tool, arguments: given }, { cards }) => {
    write($("activity"), `${tool} is running…`);
    const card =
      cards.find((each) => !each.id && each.tool === tool && each.allowed && same(each.given, given)) ??
      newCard(cards, tool, given);
    card.run(id);
  },
  tool_progress: ({ id, value, total, message }, { cards }) =>
    cards.find((each) => each.id === id)?.progress(value, total, message),
  tool_end: ({ id, tool, text, outcome, milliseconds }, answer) => {
    const { cards } = answer;
    const card =
      cards.find((each) => each.id === id && !each.over) ??
      cards.find((each) => !each.id && !each.over && each.tool === tool && outcome === "refused") ??
      newCard(cards, tool, {});
    card.settle({ text, outcome, milliseconds });
    answer.text = null;
    write($("activity"), cards.some((each) => each.waits) ? "The model is waiting for you." : "The model is thinking…");
    end.stay(busy);
  },
  sampling_result: ({ text }) => remark(`The server asked the model: ${text.slice(0, 300)}`),
  answer_end: ({ reason }) => ENDS[reason] && remark(ENDS[reason]),
  stopped: (_, { cards }) => {
    for (const card of cards) card.stop();
    remark("Stopped.");
  },
  failed: ({ reason }, { cards }) => {
    for (const card of cards) card.stop();
    remark(reason, "bad");
  },
  idle: () => {
    work(false);
    end.stay(busy);
  }
};

// The conversation

function connect() {
  const address = new URL("chat/playground/talk", document.baseURI);
  address.protocol = address.protocol.replace("http", "ws");
  const mine = new WebSocket(address);
  socket = mine;
  mine.addEventListener("message", ({ data }) => {
    if (mine !== socket || !turn) return;
    const message = JSON.parse(data);
    HANDLERS[message.type]?.(message, turn);
  });
  mine.addEventListener("close", async ({ reason }) => {
    if (mine !== socket) return;
    socket = null;
    const answer = turn;
    const why = reason || (await look()) || "The connection was lost.";
    if (!answer || answer !== turn) return; // a new conversation has begun
    if (busy) {
      for (const card of answer.cards) card.stop();
      work(false);
    }
    remark(`This conversation has ended. ${why}`, "bad");
    $("asking").hidden = true;
    $("fresh").classList.add("accent");
  });
  return new Promise((resolve) => mine.addEventListener("open", resolve, { once: true }));
}

/** @param {string} text */
async function sendQuestion(text) {
  if (busy || !text.trim()) return;
  $("question").value = "";
  begin(text);
  $("fresh").hidden = false;
  work(true, "Connecting…");
  if (socket?.readyState !== WebSocket.OPEN) await connect();
  send({ type: "say", text });
}

function fresh() {
  const old = socket;
  socket = turn = null;
  old?.close();
  work(false);
  $("turns").replaceChildren();
  $("asking").hidden = $("welcome").hidden = state?.state !== "ready";
  $("fresh").hidden = true;
  $("question").focus();
}

// State and tools

/** Load the state of the playground. Returns an error message, or "". */
async function look() {
  /** @param {string} reason */
  const failed = (reason) => {
    showText($("unavailable"), reason);
    return reason;
  };
  try {
    const response = await fetch("chat/playground", { cache: "no-store" });
    if (!response.ok) return failed(await errorMessage(response));
    state = await response.json();
  } catch {
    return failed("The server can't be reached.");
  }
  const { server, state: now, reason, model } = /** @type {Json} */ (state);
  write($("server-name"), server.title);
  write($("server-version"), server.version);
  showText($("unavailable"), now === "forbidden" && reason);
  $("setup").hidden = now !== "off";
  write($("setup-reason"), reason ?? "");
  $("model").hidden = now !== "ready";
  write($("model"), model ?? "");
  return "";
}

async function showTools() {
  const tools = await listTools();
  if (!tools) return;
  write($("tool-count"), tools.length || "");
  /** @param {[Json, string]} tool */
  const row = ([{ name, description, annotations }, label]) =>
    element(
      "li",
      { title: description ?? name },
      element("span", { className: "words tool-name", dir: "auto" }, label),
      annotations?.readOnlyHint ? element("span", "badge", "reads") : null
    );
  $("tools").replaceChildren(...[...labelsOf(tools, ({ name }) => name)].slice(0, SHOWN_TOOLS).map(row));
  const easy = tools
    .filter(({ annotations, inputSchema }) => annotations?.readOnlyHint || !inputSchema?.required?.length)
    .slice(0, 2);
  const ideas = ["What can you do here?", ...easy.map(({ name }) => `Try ${name} and explain the result.`)];
  $("suggestions").replaceChildren(...ideas.map((idea) => makeButton("", () => sendQuestion(idea), idea)));
}

const ENV = ["API_URL=http://127.0.0.1:11434/v1", "API_KEY=your_api_key", "DEFAULT_MODEL=your_model"].join("\n");
/** @param {string} text @param {string} name */
const code = (text, name) => copyable(wrapped(name, "ltr", text), "Copy");

/** Open the playground. */
export async function openPlayground() {
  if (state?.state === "ready") return $("question").focus();
  $("setup-install").replaceChildren(code("pip install 'millstream[agent]'", "Install"));
  $("setup-env").replaceChildren(code(ENV, "Variables"));
  await look();
  const ready = state?.state === "ready";
  $("asking").hidden = !ready;
  $("welcome").hidden = !ready || Boolean(turn);
  if (ready && room() === "playground") $("question").focus();
  await showTools().catch(() => {});
}

onSubmit($("asking"), () => sendQuestion($("question").value));
$("question").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    sendQuestion($("question").value);
  } else if (event.key === "Escape" && busy) send({ type: "stop" });
});
$("stop").onclick = () => {
  send({ type: "stop" });
  $("question").focus();
};
$("fresh").onclick = fresh;
shortcut("n", "New conversation in the playground", () => room() === "playground" && !$("fresh").hidden && fresh());
commands(() =>
  room() === "playground" && turn ? [{ title: "New conversation", group: "Playground", icon: "add", run: fresh }] : []
);
