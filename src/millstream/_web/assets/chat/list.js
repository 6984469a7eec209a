// The messages of the open channel. New messages are drawn once per frame to limit layouts.

import { $ } from "../dom.js";
import { End } from "./end.js";
import { DRAWN, draw, drawAll, unreadLine } from "./messages.js";

/** @typedef {import("./messages.js").Actions} Actions */
/** @typedef {import("./messages.js").Conversation} Conversation */
/** @typedef {import("./messages.js").Entry} Entry */

/** @type {Conversation | null} */
let room = null;
let actions = /** @type {Actions} */ ({}); // until `connectList`
const end = new End($("scroll"), $("newer"));
/** @type {string[]} of the search */
let words = [];
/** @type {Array<{entry: Entry, before?: Entry}>} messages since the last frame */
let undrawn = [];

/**
 * `retry(entry)` and `edit(entry)` are called by the buttons of a failed message.
 *
 * @param {Omit<Actions, "found">} given
 */
export const connectList = (given) => (actions = { ...given, found: () => words.length > 0 });

/** Whether an entry contains all search words. @param {Entry} entry */
const matches = (entry) =>
  !words.length ||
  (entry.kind === "message" && words.every((word) => `${entry.name}\n${entry.text}`.toLowerCase().includes(word)));

/** Show only messages that contain these words, and return their number. @param {string} text */
export function search(text) {
  words = text.toLowerCase().split(/\s+/).filter(Boolean);
  redraw();
  end.scroll();
  return room?.entries.filter((entry) => entry.kind === "message" && matches(entry)).length ?? 0;
}

/** Scroll to a message and highlight it. Returns false if it isn't in the list. @param {string} id */
export function reveal(id) {
  const entry = room?.entries.find((each) => each.id === id);
  drawNew();
  if (!entry?.node?.isConnected) return false;
  end.follows = false;
  entry.node.scrollIntoView({ block: "center" });
  entry.node.classList.remove("marked");
  void entry.node.offsetWidth; // restarts the animation
  entry.node.classList.add("marked");
  return true;
}

/** Show a channel, or none. @param {Conversation | null} conversation */
export function showRoom(conversation) {
  room = conversation;
  redraw();
  $("quiet").hidden = Boolean(room?.entries.length);
  end.scroll();
}

/** Redraw the open channel. */
export function redraw() {
  undrawn = [];
  if (room) drawAll(room, actions, matches);
  else $("messages").replaceChildren();
  end.stay();
}

/**
 * Show a new entry of the open channel; the user's own messages immediately.
 *
 * @param {Entry} entry
 * @param {Entry | undefined} before
 */
export function append(entry, before) {
  if (!matches(entry)) return;
  undrawn.push({ entry, before });
  if (undrawn.length > DRAWN) undrawn.shift();
  if (entry.own) end.follows = true;
  if (entry.state) drawNew();
  else if (undrawn.length === 1) requestAnimationFrame(drawNew);
}

function drawNew() {
  if (!undrawn.length) return;
  const list = $("messages");
  list.append(
    ...undrawn.flatMap(({ entry, before }) => [
      ...(entry === room?.mark ? [unreadLine()] : []),
      ...draw(entry, before, actions)
    ])
  );
  undrawn = [];
  $("quiet").hidden = true;
  // Keep more messages while the user reads older ones.
  for (const most = end.follows ? DRAWN : 4 * DRAWN; list.childElementCount > most; ) list.firstElementChild?.remove();
  end.stay(true);
}

/** Redraw a changed entry. @param {Entry} entry */
export function update(entry) {
  if (!room || !entry.node?.isConnected) return;
  const place = room.entries.indexOf(entry);
  entry.node.replaceWith(...draw(entry, room.entries[place - 1] ?? null, actions).slice(-1));
  end.stay();
}

/** Remove an entry. @param {Entry} entry */
export function remove(entry) {
  undrawn = undrawn.filter((each) => each.entry !== entry);
  entry.node?.remove();
}
