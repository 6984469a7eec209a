// The messages of the open channel: a list that follows its end, unless somebody reads further up. What is heard is drawn
// with the next frame, all at once: a thousand messages a second mustn't cost a thousand layouts.

import { $ } from "../dom.js";
import { DRAWN, draw, drawAll, unreadLine } from "./messages.js";

/** @type {import("./messages.js").Conversation | null} */
let room = null;
let actions = {};
let follows = true;
let words = []; // what is searched for
let undrawn = []; // {entry, before}: what was heard since the last frame

/** `retry(entry)` and `edit(entry)` are what the buttons of a message that failed do. */
export const connectList = (given) => (actions = { ...given, found: () => words.length > 0 });

/** Whether an entry has every word that is searched for. */
const matches = (entry) => !words.length || (entry.kind === "message" && words.every((word) => `${entry.name}\n${entry.text}`.toLowerCase().includes(word)));

/** Show only what has these words; gives how many messages have. */
export function search(text) {
  words = text.toLowerCase().split(/\s+/).filter(Boolean);
  redraw();
  toEnd();
  return room?.entries.filter((entry) => entry.kind === "message" && matches(entry)).length ?? 0;
}

/** Bring a message into sight and mark it; false if it isn't here. */
export function reveal(id) {
  const entry = room?.entries.find((each) => each.id === id);
  drawNew();
  if (!entry?.node?.isConnected) return false;
  follows = false;
  entry.node.scrollIntoView({ block: "center" });
  entry.node.classList.remove("marked");
  void entry.node.offsetWidth; // so that a second visit is seen, too
  entry.node.classList.add("marked");
  return true;
}

/** Show the end. */
export function toEnd() {
  follows = true;
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("newer").hidden = true;
}

/** Stay at the end, if that is where the list is. */
export const stay = () => follows && toEnd();

/** Show a channel, or none. */
export function showRoom(conversation) {
  room = conversation;
  redraw();
  $("quiet").hidden = Boolean(room?.entries.length);
  toEnd();
}

/** Draw the open channel anew. */
export function redraw() {
  undrawn = [];
  if (room) drawAll(room, actions, matches);
  else $("messages").replaceChildren();
  stay();
}

/** Show a new entry of the open channel; what this person just wrote is there at once. */
export function append(entry, before) {
  if (!matches(entry)) return;
  undrawn.push({ entry, before });
  if (undrawn.length > DRAWN) undrawn.shift();
  if (entry.own) follows = true;
  if (entry.state) drawNew();
  else if (undrawn.length === 1) requestAnimationFrame(drawNew);
}

function drawNew() {
  if (!undrawn.length) return;
  const list = $("messages");
  list.append(...undrawn.flatMap(({ entry, before }) => [...(entry === room.mark ? [unreadLine()] : []), ...draw(entry, before, actions)]));
  undrawn = [];
  $("quiet").hidden = true;
  // Somebody who reads older messages keeps them for a while.
  for (const most = follows ? DRAWN : 4 * DRAWN; list.childElementCount > most; ) list.firstChild.remove();
  if (follows) toEnd();
  else $("newer").hidden = false;
}

/** Draw an entry again that has changed. */
export function update(entry) {
  if (!entry.node?.isConnected) return;
  const place = room.entries.indexOf(entry);
  entry.node.replaceWith(...draw(entry, room.entries[place - 1] ?? null, actions).slice(-1));
  stay();
}

/** Take an entry away. */
export function remove(entry) {
  undrawn = undrawn.filter((each) => each.entry !== entry);
  entry.node?.remove();
}

$("newer").addEventListener("click", toEnd);
$("scroll").addEventListener("scroll", () => {
  follows = $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;
  if (follows) $("newer").hidden = true;
});
// Where the room for messages shrinks, the newest stays in sight.
new ResizeObserver(stay).observe($("scroll"));
