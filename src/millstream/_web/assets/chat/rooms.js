// The rooms of the chat: people on channels, and the playground with a model. The URL determines the open room.

import { $ } from "../dom.js";
import { commands, shortcut } from "../shell/palette.js";

/** @type {Record<string, string>} */
const TITLES = { people: "Chat", playground: "Playground" };
/** @type {Record<string, () => void>} */
let rooms = {};

export const room = () => $("main").dataset.room;

/** Open a room. @param {string} name */
export function enterRoom(name) {
  $("main").dataset.room = name;
  for (const each of Object.keys(TITLES)) $(`to-${each}`).ariaCurrent = each === name ? "true" : null;
  document.title = TITLES[name];
  closeDrawer();
  rooms[name]?.();
}

export function closeDrawer() {
  $("side").classList.remove("shown");
  for (const id of ["show-channels", "show-rooms"]) $(id).ariaExpanded = "false";
}

// On a phone, the rooms are a drawer.
for (const id of ["show-channels", "show-rooms"]) {
  $(id).addEventListener("click", () => ($(id).ariaExpanded = String($("side").classList.toggle("shown"))));
}

/**
 * Open the room in the URL, now and when it changes.
 *
 * @param {Record<string, () => void>} given called when a room is opened
 */
export function beginRooms(given) {
  rooms = given;
  const follow = () => enterRoom(location.hash === "#playground" ? "playground" : "people");
  addEventListener("hashchange", follow);
  follow();
}

shortcut(
  "p",
  "Switch between people and the playground",
  () => (location.hash = room() === "people" ? "playground" : "people")
);
commands(() => [
  { title: "People", group: "Rooms", icon: "person", run: () => (location.hash = "people") },
  { title: "Playground", group: "Rooms", icon: "play", run: () => (location.hash = "playground") }
]);
