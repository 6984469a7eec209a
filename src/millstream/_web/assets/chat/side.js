// The sidebars: channels with unread counts, members, and who is typing.

import { $, element, icon, iconButton, write } from "../dom.js";
import { drawWhenReleased } from "../shell/controls.js";
import { nameMark } from "./messages.js";

/** @typedef {import("./messages.js").Conversation} Conversation */

/** Return the name of a member: the known one, or the one they chose. @param {Json} member */
export const nameOf = (member) => member.user?.name || member.name || "Someone";

/**
 * Draw the members of the open channel; `own` contains the ids of this page, and `me` the user's known name.
 *
 * @param {Json[]} members
 * @param {Set<string>} own
 * @param {string} me
 */
export function drawPeople(members, own, me) {
  const people = members.sort((one, other) => one.since - other.since);
  write($("people-count"), people.length);
  $("members").replaceChildren(
    ...people.map((member) => {
      const name = nameOf(member);
      const mine = own.has(member.client_id) && (!me || member.user?.name === me);
      const initial = element("span", { className: "initial", "aria-hidden": "true" }, [...name][0].toUpperCase());
      return element(
        "li",
        mine ? "own" : "",
        initial,
        element("span", { className: "one-line", dir: "auto", title: name }, mine ? `${name} (you)` : name),
        nameMark(Boolean(member.user?.name))
      );
    })
  );
}

/** Draw who is typing: name -> expiry time. @param {Map<string, number>} typing */
export function drawTyping(typing) {
  const now = Date.now();
  const names = [...typing].filter(([, until]) => until > now).map(([name]) => name);
  const text =
    names.length === 0
      ? ""
      : names.length === 1
        ? `${names[0]} is typing…`
        : names.length === 2
          ? `${names.join(" and ")} are typing…`
          : `${names.length} people are typing…`;
  write($("typing"), text);
}

/**
 * Draw the channels, and the unread count in the page's title. `part` leaves a channel; `first` can't be left.
 *
 * @param {Map<string, Conversation>} rooms
 * @param {string} current
 * @param {string} first
 * @param {(channel: string) => void} part
 */
export function drawChannels(rooms, current, first, part) {
  let all = 0;
  const items = [...rooms].map(([channel, { unread, failed }]) => {
    all += unread;
    const link = element(
      "a",
      {
        href: `#channel=${encodeURIComponent(channel)}`,
        "aria-current": channel === current ? "true" : null,
        title: channel
      },
      element("span", { className: "one-line", dir: "auto" }, `# ${channel}`)
    );
    if (failed) link.append(element("span", "badge bad", "refused"));
    else if (unread)
      link.append(
        element("span", "count", unread > 99 ? "99+" : unread, element("span", "visually-hidden", " unread"))
      );
    const close = iconButton(`Leave ${channel}`, icon("close"), () => part(channel));
    return element("li", unread ? "has-unread" : "", link, channel === first ? null : close);
  });
  drawWhenReleased($("channels"), () => $("channels").replaceChildren(...items));
  write($("unread-all"), all || "");
  write($("unread-people"), all || "");
  if ($("main").dataset.room === "people") document.title = all ? `(${all}) Chat` : "Chat";
}

/** Validate a channel's name by the hub's rules. Returns a message, or "". @param {string} name */
export function wrong(name) {
  if (/\s/.test(name)) return "A channel's name has no spaces.";
  if (name.startsWith("$")) return "Names with $ belong to the server.";
  if (/[*>]/.test(name)) return "A channel's name has no * or >.";
  return name.split(".").includes("") ? "A channel's name has no empty part." : "";
}

// In a small window, the members are a drawer.
$("show-people").onclick = () => ($("show-people").ariaExpanded = String($("people").classList.toggle("shown")));
