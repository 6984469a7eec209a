// The playground: a conversation with a model that uses the server's tools. It lasts as long as its WebSocket. The server
// runs the model and the calls; this page shows them, and asks the user for approval.

import { listTools } from "./tool.js";
import { $, element, icon, isAtEnd, labelOf, makeButton, onSubmit, wrapped, write } from "../dom.js";
import { markdown } from "../render/markdown.js";
import { copyable } from "../shell/controls.js";
import { commands, shortcut } from "../shell/palette.js";
import { errorMessage } from "../sse.js";
import { Card, formCard } from "./calls.js";
import { room } from "./rooms.js";

const SHOWN_TOOLS = 200;

let state = null; // {state, model, reason} of the server
let socket = null;
let busy = false;
let follows = true;
let turn = null; // the current answer: {body, text, cards}

// Drawing

function toEnd() {
  follows = true;
  $("answers").scrollTop = $("answers").scrollHeight;
  $("answers-newer").hidden = true;
}

function stay() {
  if (follows) toEnd();
  else $("answers-newer").hidden = !busy;
}

/** Append a node to the answer. */
function add(node) {
  turn.text = null;
  turn.body.append(node);
  stay();
}

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
  toEnd();
}

/** Append text to the answer, drawn once per frame. */
function grow(piece) {
  if (!turn.text) {
    const node = element("div", { className: "markdown", dir: "auto" });
    turn.body.append(node);
    turn.text = { node, all: "", waits: false };
  }
  const text = turn.text;
  text.all += piece;
  if (text.waits) return;
  text.waits = true;
  requestAnimationFrame(() => {
    text.waits = false;
    text.node.dir = "";
    text.node.replaceChildren(...markdown(text.all));
    text.node.dir = "auto";
    stay();
  });
}

const remark = (text, look = "") =>
  add(
    element(
      "p",
      { className: `remark ${look}`, role: look === "bad" ? "alert" : null },
      icon(look === "bad" ? "alert" : "help"),
      element("span", {}, text)
    )
  );

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);
const send = (message) => socket?.readyState === WebSocket.OPEN && socket.send(JSON.stringify(message));

function work(on, says = "") {
  busy = on;
  $("ask").hidden = on;
  $("stop").hidden = !on;
  write($("activity"), says);
}

/** Handlers of the server's messages by type. */
const HANDLERS = {
  round_start: () => write($("activity"), "The model is thinking…"),
  delta: ({ text }) => {
    write($("activity"), "The model is writing…");
    grow(text);
  },
  assistant_message: () => (turn.text = null),
  model_retry: ({ seconds, reason, void: empty }) => {
    if (empty && turn.text) turn.text.node.remove();
    turn.text = null;
    write($("activity"), `${reason} Trying again in ${Math.ceil(seconds)} s.`);
  },
  approval: ({ id, kind, tool, upstream, description, arguments: given, text }) => {
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
    turn.cards.push(card);
    add(card.node);
  },
  question: ({ id, message, url, schema }) => {
    write($("activity"), "A tool is waiting for you.");
    add(formCard({ id, message, url, schema }, (values) => send({ type: "fill", id, values })));
  },
  tool_start: ({ id, tool, arguments: given }) => {
    write($("activity"), `${tool} is running…`);
    let card = turn.cards.find((each) => !each.id && each.tool === tool && each.allowed && same(each.given, given));
    if (!card) {
      card = new Card({ tool, given });
      turn.cards.push(card);
      add(card.node);
    }
    card.run(id);
  },
  tool_progress: ({ id, value, total, message }) =>
    turn.cards.find((each) => each.id === id)?.progress(value, total, message),
  tool_end: ({ id, tool, text, outcome, milliseconds }) => {
    let card =
      turn.cards.find((each) => each.id === id && !each.over) ??
      turn.cards.find((each) => !each.id && !each.over && each.tool === tool && outcome === "refused");
    if (!card) {
      card = new Card({ tool, given: {} });
      turn.cards.push(card);
      add(card.node);
    }
    card.settle({ text, outcome, milliseconds });
    turn.text = null;
    write(
      $("activity"),
      turn.cards.some((each) => each.waits) ? "The model is waiting for you." : "The model is thinking…"
    );
    stay();
  },
  sampling_result: ({ text }) => remark(`The server asked the model: ${text.slice(0, 300)}`),
  answer_end: ({ reason }) => {
    const why = {
      rounds: "Stopped: the model reached the limit of tool calls for one answer.",
      tokens: "Stopped: the answer reached its limit of tokens.",
      length: "The model reached its own limit of length.",
      filtered: "The model's API filtered the answer."
    }[reason];
    if (why) remark(why);
  },
  stopped: () => {
    for (const card of turn.cards) card.stop();
    remark("Stopped.");
  },
  failed: ({ reason }) => {
    for (const card of turn.cards) card.stop();
    remark(reason, "bad");
  },
  idle: () => {
    work(false);
    stay();
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
    HANDLERS[message.type]?.(message);
  });
  mine.addEventListener("close", async ({ reason }) => {
    if (mine !== socket) return;
    socket = null;
    const asked = reason || (await look()) || "The connection was lost.";
    if (turn && busy) {
      for (const card of turn.cards) card.stop();
      work(false);
    }
    if (turn) remark(`This conversation has ended. ${asked}`, "bad");
    $("asking").hidden = true;
    $("fresh").classList.add("accent");
  });
  return new Promise((resolve) => mine.addEventListener("open", resolve, { once: true }));
}

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
  const failed = (reason) => {
    $("unavailable").textContent = reason;
    $("unavailable").hidden = false;
    return reason;
  };
  try {
    const response = await fetch("chat/playground", { cache: "no-store" });
    if (!response.ok) return failed(await errorMessage(response));
    state = await response.json();
  } catch {
    return failed("The server can't be reached.");
  }
  write($("server-name"), state.server.title);
  write($("server-version"), state.server.version);
  $("unavailable").hidden = state.state !== "forbidden";
  $("unavailable").textContent = state.state === "forbidden" ? state.reason : "";
  $("setup").hidden = state.state !== "off";
  write($("setup-reason"), state.reason ?? "");
  $("model").hidden = state.state !== "ready";
  write($("model"), state.model ?? "");
  return "";
}

async function showTools() {
  const tools = await listTools();
  if (!tools) return;
  write($("tool-count"), tools.length || "");
  const row = ({ name, title, description, annotations }) =>
    element(
      "li",
      { title: description ?? name },
      element("span", { className: "one-line tool-name", dir: "auto" }, labelOf({ name, title })),
      annotations?.readOnlyHint ? element("span", "badge", "reads") : null
    );
  $("tools").replaceChildren(...tools.slice(0, SHOWN_TOOLS).map(row));
  const easy = tools
    .filter(({ annotations, inputSchema }) => annotations?.readOnlyHint || !inputSchema?.required?.length)
    .slice(0, 2);
  const ideas = ["What can you do here?", ...easy.map(({ name }) => `Try ${name} and explain the result.`)];
  $("suggestions").replaceChildren(
    ...ideas.map((idea) => {
      const button = makeButton("", () => sendQuestion(idea), idea);
      return button;
    })
  );
}

const ENV = ["API_URL=http://127.0.0.1:11434/v1", "API_KEY=your_api_key", "DEFAULT_MODEL=your_model"].join("\n");
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

onSubmit($("asking"), () => {
  sendQuestion($("question").value);
});
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
$("answers-newer").onclick = toEnd;
$("answers").addEventListener("scroll", () => {
  follows = isAtEnd($("answers"));
  if (follows) $("answers-newer").hidden = true;
});
new ResizeObserver(() => follows && toEnd()).observe($("answers"));
shortcut("n", "New conversation in the playground", () => room() === "playground" && !$("fresh").hidden && fresh());
commands(() =>
  room() === "playground" && turn ? [{ title: "New conversation", group: "Playground", icon: "add", run: fresh }] : []
);
