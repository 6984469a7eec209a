// The chat: the page publishes messages to a channel of the hub and hears all of them, its own too, on the channel's
// event stream. It needs no tool, so it works on any server with a hub. The channel's presence says who is here. A
// reload asks for the history, a reconnect for what was missed.

import { $, either, element } from "./dom.js";
import { Feed, refusal, showState } from "./sse.js";

const CHANNEL = "chat";
const HISTORY = 200;
const NAME = "millstream.name";
const CLIENT = "millstream.client";
const OWN = "millstream.own";
const JOINED_AGAIN_MS = 15_000;

/** One id for each tab, the same after a reload. */
function clientId() {
  const id = sessionStorage.getItem(CLIENT) ?? Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem(CLIENT, id);
  return id;
}

const me = { id: clientId(), name: "" };
const members = new Map();
const drawn = new Set();
/** What this tab has sent and not heard yet, and the ids of what it heard of that: others may have the same name. */
const sent = [];
const own = new Set(JSON.parse(sessionStorage.getItem(OWN) ?? "[]"));
let early = null;

// Messages

/** When it was said, if that is a time: any program may publish anything here. */
function moment(time) {
  const at = typeof time === "number" ? new Date(time * 1_000) : typeof time === "string" ? new Date(time) : null;
  return at && Number.isFinite(at.getTime()) ? at : null;
}

/** What was said, by whom and when. Other programs send plain text to the channel, too. */
function read(data) {
  try {
    const value = JSON.parse(data);
    if (value && typeof value === "object" && "message" in value) {
      return { name: String(value.name || ""), text: String(value.message), at: moment(value.time) };
    }
  } catch {
    // Plain text.
  }
  return { name: "", text: data, at: null };
}

/** Whether this tab has sent it. */
function isOwn(id, name, text) {
  const place = name === me.name ? sent.indexOf(text) : -1;
  if (place >= 0) {
    sent.splice(place, 1);
    own.add(id);
    sessionStorage.setItem(OWN, JSON.stringify([...own].slice(-HISTORY)));
  }
  return own.has(id);
}

function atEnd() {
  const box = $("scroll");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

let follows = true;

function toEnd() {
  follows = true;
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("newer").hidden = true;
}

function append(node) {
  $("messages").append(node);
  $("quiet").hidden = true;
  if (follows || node.classList.contains("own")) toEnd();
  else $("newer").hidden = false;
}

function showMessage(event) {
  if (event.id && drawn.has(event.id)) return;
  drawn.add(event.id);
  const { name, text, at } = read(event.data);
  const mine = isOwn(event.id, name, text);
  const who = name || "Somebody";
  const last = $("messages").lastElementChild;
  const first = !last?.classList.contains("message") || last.dataset.name !== who || last.classList.contains("own") !== mine;
  const node = element("li", { className: `message${mine ? " own" : ""}${first ? " first" : ""}` });
  node.dataset.name = who;
  const header = element("header", { className: first ? "" : "visually-hidden" }, element("strong", {}, mine ? "You" : who));
  if (at) header.append(element("time", { dateTime: at.toISOString(), title: at.toLocaleString() }, at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit" })));
  node.append(header, element("p", { className: "bubble" }, text));
  append(node);
}

function showEvent(text, kind = "") {
  append(element("li", { className: `event ${kind}` }, text));
}

/** Who came and went is told while it happens, not as history; a reload, which leaves and joins, is no news. */
function showPresence(type, member) {
  if ($("scroll").ariaBusy === "true") return;
  const last = $("messages").lastElementChild;
  const same = last?.dataset.client === member.client_id;
  if (same && type === "join" && last.dataset.presence === "leave" && Date.now() - last.dataset.at < JOINED_AGAIN_MS) {
    last.remove();
    return;
  }
  if (member.client_id === me.id || (same && last.dataset.presence === type)) return;
  const node = element("li", { className: "event" }, `${member.name || "Somebody"} ${type === "join" ? "joined" : "left"}`);
  Object.assign(node.dataset, { client: member.client_id, presence: type, at: Date.now() });
  append(node);
}

// People

function drawMembers() {
  const people = [...members.values()].sort((one, other) => one.since - other.since);
  $("members").replaceChildren(
    ...people.map((member) => {
      const own = member.client_id === me.id;
      const name = member.name || "Somebody";
      const initial = element("span", { className: "initial", "aria-hidden": "true" }, [...name][0].toUpperCase());
      return element("li", { className: own ? "own" : "" }, initial, element("span", {}, own ? `${name} (you)` : name));
    }),
  );
  $("people-count").textContent = people.length;
}

function applyPresence({ type, member }) {
  if (type === "join") members.set(member.client_id, member);
  else members.delete(member.client_id);
}

function hearPresence(event) {
  if (drawn.has(event.id)) return;
  drawn.add(event.id);
  const change = { type: event.type, member: JSON.parse(event.data) };
  early?.push(change);
  applyPresence(change);
  drawMembers();
  showPresence(change.type, change.member);
}

/** The list as it is now; what is heard while it is under way counts after it. */
async function fetchMembers() {
  early = [];
  try {
    const response = await fetch("chat/members", { cache: "no-store" });
    if (!response.ok) throw new Error(await refusal(response));
    const list = await response.json();
    members.clear();
    for (const member of list) members.set(member.client_id, member);
    early.forEach(applyPresence);
  } catch {
    // The stream goes on telling who comes and goes; its next reconnect asks again.
  }
  early = null;
  drawMembers();
}

// The stream

const take = {
  message: showMessage,
  join: hearPresence,
  leave: hearPresence,
  gap: () => showEvent("The server no longer has some older messages, so they're missing here.", "gap"),
  cut: () => {},
};
let feed = null;

function listen() {
  const query = new URLSearchParams({ channel: `${CHANNEL},$presence.${CHANNEL}`, client_id: me.id, name: me.name, history: HISTORY });
  feed = new Feed(
    `events?${query}`,
    (event) => take[event.type]?.(event),
    (state) => {
      showState($("state"), $("note"), state);
      $("scroll").ariaBusy = "true";
      if (state.state !== "open") return;
      fetchMembers();
      // History is not read out; what is said from now on is.
      setTimeout(() => ($("scroll").ariaBusy = "false"), 1_000);
    },
  );
  feed.start();
}

// Sending

/** Publish a message. What goes wrong is told in the server's words. */
async function send(message) {
  const response = await fetch("publish", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ channel: CHANNEL, data: { name: me.name, message, time: Date.now() / 1_000 } }),
  });
  if (!response.ok) throw new Error(await refusal(response));
}

async function submit() {
  const field = $("text");
  const text = field.value.trim();
  if (!text || $("send").disabled) return;
  $("send").disabled = true;
  $("failure").hidden = true;
  sent.push(text);
  try {
    await send(text);
    if (field.value.trim() === text) field.value = "";
  } catch (error) {
    if (sent.includes(text)) sent.splice(sent.indexOf(text), 1);
    const reason = error.name === "TypeError" ? "The server can't be reached." : error.message;
    $("failure").textContent = `Not sent. ${reason} Your message is still here.`;
    $("failure").hidden = false;
  }
  $("send").disabled = false;
  field.focus();
}

// Coming in and going out

function enter(name) {
  me.name = name;
  localStorage.setItem(NAME, name);
  $("join").hidden = true;
  $("talk").hidden = $("people").hidden = $("state").hidden = false;
  listen();
  $("text").focus();
}

function leave() {
  feed?.stop();
  feed = null;
  members.clear();
  drawn.clear();
  $("messages").replaceChildren();
  either($("quiet"), $("newer"), true);
  $("talk").hidden = $("people").hidden = $("state").hidden = true;
  $("join").hidden = false;
  $("name").value = me.name;
  $("name").select();
}

$("join").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = $("name").value.trim();
  if (name) enter(name);
});
$("leave").addEventListener("click", leave);
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
$("newer").addEventListener("click", toEnd);
$("scroll").addEventListener("scroll", () => {
  follows = atEnd();
  if (follows) $("newer").hidden = true;
});
// Where the room for messages shrinks, the newest stays in sight.
new ResizeObserver(() => follows && toEnd()).observe($("scroll"));

const known = localStorage.getItem(NAME);
if (known) enter(known);
else {
  $("join").hidden = false;
  $("name").focus();
}
