// The chat: channels of the hub over one WebSocket. It works on any server with a hub, whose rules control access to
// channels. The presence of a channel lists its members.

import { $, hashParameters, onSubmit, showText, store, stored, write } from "../dom.js";
import { connect, Refused } from "../hub.js";
import { fetchJson, showState } from "../shell/connection.js";
import { commands, shortcut } from "../shell/palette.js";
import { toast } from "../shell/controls.js";
import { append, connectList, redraw, remove, reveal, search, showRoom, update } from "./list.js";
import { Conversation, read } from "./messages.js";
import { openPlayground } from "./playground.js";
import { beginRooms, closeDrawer, room as place } from "./rooms.js";
import { drawChannels, drawPeople, drawTyping, nameOf, wrong } from "./side.js";
import { callTool, findTool, mayTake, toolName } from "./tool.js";

/** @typedef {import("./messages.js").Entry} Entry */
/** @typedef {import("./messages.js").Own} Own */
/** @typedef {import("../hub.js").HubEvent} HubEvent */
/** @typedef {import("../hub.js").Subscription} Subscription */

const FIRST = "broadcast"; // the hub's default channel
const HISTORY = 200;
const NAME = "millstream.name";
const CHANNELS = "millstream.channels";
const OWN = "millstream.own";
const MAX_CHANNELS = 12; // of 16 subscriptions; the open channel uses two more
const TYPING_MS = 3_000;
const TYPED_MS = 6_000;
const BACK_MS = 15_000;

/** `known` is the name of the signed-in user that the server tells others. */
const me = { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), name: "", known: "" };
const own = new Set(stored("session", OWN, [])); // ids of this tab's messages
/** @type {Map<string, Own>} unconfirmed messages by key */
const pending = new Map();
/** @type {Map<string, Conversation>} */
const rooms = new Map();
let current = "";
let made = 0;
let saidTyping = 0;

const room = () => rooms.get(current);
/** @param {string} channel */
const typingOf = (channel) => `${channel}.typing`;
/** @param {string} channel */
const presenceOf = (channel) => `$presence.${channel}`;

/** @type {import("../hub.js").Hub} */
let hub;
/** @type {Subscription[]} presence and typing of the open channel */
let around = [];

function connectHub() {
  hub = connect(".");
  hub.on("state", (state) => {
    showState($("state"), state, () => hub.retryNow());
    if (state.state === "open") return;
    for (const conversation of rooms.values()) conversation.live = false;
    for (const entry of pending.values()) if (entry.state === "sending") fate(entry, "waiting");
  });
  hub.on("connected", ({ server, missing_scope: missingScope = "" }) => {
    showServer(server);
    $("composer").hidden = Boolean(missingScope);
    showText(
      $("read-only"),
      missingScope &&
        `You can read here. Writing takes the scope ${missingScope}, which your account doesn't have. Ask this server's operator for it.`
    );
  });
}

/** Write the name of the server into the bar. Servers without a version send "0". */
function showServer({ name = "", title = "", version = "" } = {}) {
  write($("server-name"), title || name);
  write($("server-version"), version === "0" ? "" : version);
}

// Messages

/** @param {Own} entry */
function edit(entry) {
  forget(entry);
  $("text").value = entry.text;
  $("text").focus();
}
connectList({
  retry: (entry) => send(entry),
  edit,
  address: ({ channel, id }) => new URL(addressOf(channel ?? current, id), location.href).href
});

/** @param {string} channel */
const addressOf = (channel, message = "") =>
  `#channel=${encodeURIComponent(channel)}${message ? `&message=${encodeURIComponent(message)}` : ""}`;

/** Add an entry to a channel, and show it if the channel is open. @param {string} channel @param {Entry} entry */
function show(channel, entry) {
  const conversation = rooms.get(channel);
  if (!conversation) return; // the user has left it
  const before = conversation.entries.at(-1);
  conversation.add(entry);
  if (channel !== current || (document.hidden && conversation.ready)) {
    if (entry.kind === "message" && !entry.own && conversation.ready) {
      conversation.mark ??= entry;
      conversation.unread += 1;
    }
    showChannels();
  }
  if (channel !== current) return;
  append(entry, before);
}

/** @param {string} channel @param {HubEvent} event */
function hear(channel, event) {
  const conversation = rooms.get(channel);
  if (!conversation || (event.id && conversation.drawn.has(event.id))) return;
  conversation.hears(event.id);
  const said = read(event);
  const mine = said.key
    ? pending.get(said.key)
    : [...pending.values()].find((entry) => entry.byTool && entry.channel === channel && entry.text === said.text);
  if (mine) {
    pending.delete(mine.key);
    mine.id = event.id;
    remember(event.id);
    inOrder(mine, said.at ?? mine.at);
    return;
  }
  if (!said.name) {
    const sender = conversation.senders.get(said.text);
    if (sender) Object.assign(said, sender);
    else conversation.typing.clear(); // a tool sent it, so the person who asked for it has finished typing
    conversation.senders.delete(said.text);
  }
  if (conversation.typing.delete(said.name) || !said.name) showTyping();
  if (conversation.ready) said.at ??= new Date();
  show(channel, { kind: "message", ...said, own: own.has(event.id) });
}

/** Move the user's confirmed message to its position in the channel. @param {Own} entry @param {Date} at */
function inOrder(entry, at) {
  const entries = rooms.get(entry.channel)?.entries ?? [];
  const later = entries.slice(entries.indexOf(entry) + 1).some((each) => !each.own || !each.state);
  if (!later) return fate(entry, "", "", at);
  Object.assign(entry, { state: "", reason: "", at });
  entries.splice(entries.indexOf(entry), 1);
  const waiting = entries.findIndex((each) => each.own && each.state);
  entries.splice(waiting < 0 ? entries.length : waiting, 0, entry);
  if (entry.channel !== current) return;
  redraw();
}

/** @param {string} id */
function remember(id) {
  own.add(id);
  store("session", OWN, [...own].slice(-HISTORY));
}

/**
 * Set the delivery state of the user's message: "", "sending", "waiting", or "failed".
 *
 * @param {Own} entry
 * @param {string} state
 */
function fate(entry, state, reason = "", at = entry.at) {
  Object.assign(entry, { state, reason, at });
  if (entry.channel === current) update(entry);
}

/** @param {Own} entry */
function forget(entry) {
  const conversation = rooms.get(entry.channel);
  if (conversation) conversation.entries = conversation.entries.filter((each) => each !== entry);
  pending.delete(entry.key);
  remove(entry);
}

/**
 * Publish with the server's tool. The message arrives by the subscription; failed calls aren't repeated.
 *
 * @param {Own} entry
 */
async function sendByTool(entry) {
  fate(entry, "sending");
  try {
    // Not every tool takes a name, so tell the channel first whose message comes.
    if (hub.open)
      await hub.publish(
        typingOf(entry.channel),
        { name: me.name, from: me.id, sends: entry.text },
        { event: "typing" }
      );
  } catch {
    // It's only shown without a sender then.
  }
  try {
    await callTool({ message: entry.text, name: me.name, channel: entry.channel });
    if (entry.state) fate(entry, "");
  } catch (/** @type {any} */ error) {
    pending.delete(entry.key);
    fate(entry, "failed", error.message);
  }
}

/** @param {Own} entry */
async function send(entry) {
  pending.set(entry.key, entry);
  if (entry.byTool) return sendByTool(entry);
  if (!hub.open || !rooms.get(entry.channel)?.live) return fate(entry, "waiting");
  fate(entry, "sending");
  try {
    const { id } = await hub.publish(entry.channel, {
      name: me.name,
      message: entry.text,
      time: entry.at.getTime() / 1_000,
      key: entry.key
    });
    remember(id);
    entry.id = id;
    // Without permission to subscribe, this response is the only confirmation.
    if (rooms.get(entry.channel)?.failed) pending.delete(entry.key);
    if (entry.state) fate(entry, "");
  } catch (error) {
    if (!pending.has(entry.key)) return;
    if (error instanceof Refused) {
      pending.delete(entry.key);
      fate(entry, "failed", error.message);
    } else fate(entry, "waiting");
  }
}

function submit() {
  const field = $("text");
  const text = field.value.trim();
  if (!text) return;
  field.value = "";
  saidTyping = 0;
  /** @type {Own} */
  const entry = {
    kind: "message",
    channel: current,
    name: me.name,
    text,
    at: new Date(),
    own: true,
    state: "sending",
    reason: "",
    key: `${me.id}-${++made}`,
    byTool: $("by").value === "tool" && !$("by").hidden
  };
  show(current, entry);
  send(entry);
  field.focus();
}

const showPeople = () => drawPeople([...(room()?.members.values() ?? [])], hub.ids, me.known);

/** Return the key of a member. Client ids are public, so another user may have the same. @param {Json} member */
const memberKey = (member) => `${member.client_id} ${member.user?.name ?? ""}`;

/** Handle a presence event. A quick reconnect isn't shown. @param {string} channel @param {HubEvent} event */
function hearPresence(channel, event) {
  const conversation = rooms.get(channel);
  if (!conversation || conversation.drawn.has(event.id)) return;
  conversation.hears(event.id);
  const member = JSON.parse(event.data);
  const name = nameOf(member);
  if (event.event === "join") conversation.members.set(memberKey(member), member);
  else conversation.members.delete(memberKey(member));
  if (channel === current) showPeople();
  if (hub.ids.has(member.client_id) || !conversation.present) return;
  const last = conversation.entries.at(-1);
  if (event.event === "join" && last?.when && last.left === name && Date.now() - last.when < BACK_MS) {
    conversation.entries.pop();
    if (channel === current) redraw();
    return;
  }
  show(channel, {
    kind: "event",
    text: `${name} ${event.event === "join" ? "joined" : "left"}`,
    left: event.event === "leave" ? name : null,
    when: Date.now(),
    day: last?.day
  });
}

/** @param {string} channel */
async function fetchMembers(channel) {
  const conversation = rooms.get(channel);
  const { members } = await hub.members(channel).catch(() => ({ members: null }));
  if (!members || !conversation) return; // presence events continue, and the next connection tries again
  conversation.members = new Map(members.map((member) => [memberKey(member), member]));
  conversation.present = true;
  if (channel === current) showPeople();
}

const showTyping = () => drawTyping(room()?.typing ?? new Map());
setInterval(showTyping, 1_000);

/** @param {string} channel @param {HubEvent} event */
function hearTyping(channel, event) {
  const { name, from, sends } = JSON.parse(event.data);
  if (from === me.id || typeof name !== "string") return;
  const typing = event.user?.name || name.slice(0, 80) || "Someone";
  rooms.get(channel)?.typing.set(typing, Date.now() + TYPED_MS);
  if (typeof sends === "string") rooms.get(channel)?.expect(sends, { name: typing, known: Boolean(event.user?.name) });
  showTyping();
}

/** Publish that the user is typing, at most every few seconds. Errors are ignored. */
function sayTyping() {
  if (!hub.open || !$("text").value.trim() || Date.now() - saidTyping < TYPING_MS) return;
  saidTyping = Date.now();
  hub.publish(typingOf(current), { name: me.name, from: me.id }, { event: "typing" }).catch(() => {});
}

const showChannels = () => drawChannels(rooms, current, FIRST, part);
const keep = () => store("local", CHANNELS, [...rooms.keys()]);

/** Subscribe to a channel without opening it. Returns nothing if there are too many. @param {string} channel */
function enterChannel(channel) {
  const known = rooms.get(channel);
  if (known || rooms.size >= MAX_CHANNELS) return known;
  const conversation = new Conversation();
  rooms.set(channel, conversation);
  const subscription = hub.subscribe(channel, { name: me.name, history: HISTORY });
  conversation.subscription = subscription;
  subscription.on("event", (event) => hear(channel, event));
  subscription.on("gap", () =>
    show(channel, {
      kind: "event",
      text: "The server no longer has some older messages, so they're missing here.",
      look: "gap"
    })
  );
  subscription.on("ready", () => {
    conversation.ready = conversation.live = true;
    if (channel === current && wantedMessage) setTimeout(() => find(wantedMessage), 0);
    // Messages that aren't in the history weren't published, so send them again.
    for (const entry of pending.values()) if (entry.channel === channel && entry.state) send(entry);
  });
  subscription.on("error", ({ message }) => {
    conversation.failed = message;
    conversation.live = true;
    if (channel === current) note();
    showChannels();
  });
  keep();
  return conversation;
}

function note() {
  const failed = room()?.failed;
  showText($("note"), failed && `You can't listen to this channel. ${failed}`);
}

/** Open a channel. @param {string} channel */
function open(channel) {
  if (channel === current) return;
  const next = enterChannel(channel);
  if (!next) return complain(`You're on ${MAX_CHANNELS} channels already. Leave one first.`);
  const before = room();
  if (before) {
    before.draft = $("text").value;
    if (!before.unread) before.mark = null;
    for (const each of around) each.close();
    before.present = false;
  }
  current = channel;
  const presence = hub.subscribe(presenceOf(channel));
  presence.on("event", (event) => hearPresence(channel, event));
  presence.on("ready", () => fetchMembers(channel));
  around = [presence, hub.subscribe(typingOf(channel)).on("event", (event) => hearTyping(channel, event))];
  next.unread = 0;
  endSearch();
  offerTool();
  write($("talk-title"), `# ${channel}`);
  $("text").value = next.draft;
  showRoom(next);
  note();
  showPeople();
  showTyping();
  showChannels();
  closeDrawer();
  if (place() === "people" && wanted() !== channel) history.replaceState(null, "", addressOf(channel));
}

/** @param {string} channel */
function part(channel) {
  if (channel === current) open(FIRST);
  rooms.get(channel)?.subscription?.close();
  rooms.delete(channel);
  for (const entry of pending.values()) if (entry.channel === channel) pending.delete(entry.key);
  keep();
  showChannels();
}

/** @param {string} text */
function complain(text) {
  showText($("channel-error"), text);
}

onSubmit($("new-channel"), () => {
  const name = $("channel").value.trim().replace(/^#/, "");
  const problem = name && wrong(name);
  complain(problem);
  if (!name || problem) return;
  $("channel").value = "";
  open(name);
  $("text").focus();
});

const wanted = () => hashParameters().get("channel") ?? "";
let wantedMessage = hashParameters().get("message") ?? "";
addEventListener("hashchange", () => {
  const channel = wanted();
  wantedMessage = hashParameters().get("message") ?? "";
  if (!channel || !me.name || wrong(channel)) return;
  open(channel);
  if (wantedMessage && room()?.ready) find(wantedMessage);
});

/** Show the message in the URL. @param {string} id */
function find(id) {
  wantedMessage = "";
  endSearch();
  if (!reveal(id)) toast("The server no longer has this message.", "bad");
}

// Search

function lookFor() {
  const text = $("search").value.trim();
  const count = search(text);
  write($("found"), text ? `${count} ${count === 1 ? "message" : "messages"}` : "");
}

function beginSearch() {
  $("search-row").hidden = false;
  $("show-search").ariaExpanded = "true";
  $("search").focus();
}

function endSearch() {
  if ($("search-row").hidden) return;
  $("search-row").hidden = true;
  $("show-search").ariaExpanded = "false";
  $("search").value = "";
  search("");
}
$("show-search").onclick = () => ($("search-row").hidden ? beginSearch() : endSearch());
$("search").oninput = lookFor;
$("search").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  endSearch();
  $("text").focus();
});

// The tool that publishes

function offerTool() {
  $("by").hidden = !mayTake(current, FIRST);
  $("by-tool").textContent = `Send with ${toolName()}`;
}

// Joining and leaving

/** @param {boolean} joined */
function showJoined(joined) {
  $("join").hidden = joined;
  for (const id of ["talk", "channels-part", "people", "state"]) $(id).hidden = !joined;
}

/** @param {string} name */
function enter(name) {
  me.name = name;
  if (!me.known) store("local", NAME, name);
  $("leave").hidden = Boolean(me.known);
  showJoined(true);
  connectHub();
  /** @type {string[]} */
  const known = stored("local", CHANNELS, []);
  const kept = known.filter((channel) => typeof channel === "string" && channel !== FIRST);
  for (const channel of [FIRST, ...kept]) enterChannel(channel);
  const first = wanted();
  open(first && !wrong(first) ? first : FIRST);
  findTool().then(
    () => current && offerTool(),
    () => {}
  );
  $("text").focus();
}

function leave() {
  hub.close();
  pending.clear();
  rooms.clear();
  current = "";
  showRoom(null);
  showJoined(false);
  $("name").value = me.name;
  $("name").select();
}

onSubmit($("join"), () => {
  const name = $("name").value.trim();
  if (name) enter(name);
});
$("leave").onclick = leave;
onSubmit($("composer"), submit);
$("text").oninput = sayTyping;
$("text").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !$("text").value) {
    const failed = room()?.entries.findLast((entry) => entry.state === "failed");
    if (failed) {
      event.preventDefault();
      edit(/** @type {Own} */ (failed));
    }
  }
});
document.addEventListener("visibilitychange", () => {
  const shown = room();
  if (document.hidden || !shown) return;
  shown.unread = 0;
  showChannels();
});
/** Open the next or previous channel. @param {number} by */
function step(by) {
  const names = [...rooms.keys()];
  if (names.length > 1) open(names[(names.indexOf(current) + by + names.length) % names.length]);
}
shortcut("/", "Write a message, or ask the model", () => $(place() === "playground" ? "question" : "text").focus());
shortcut("f", "Search the messages", () => current && place() === "people" && beginSearch());
shortcut("j", "Next channel", () => step(1));
shortcut("k", "Previous channel", () => step(-1));
commands(() =>
  current
    ? [
        ...[...rooms.keys()].map((channel) => ({
          title: `# ${channel}`,
          group: "Channels",
          run: () => open(channel)
        })),
        {
          title: "Join a channel",
          group: "Channels",
          icon: "add",
          run: () => {
            $("side").classList.add("shown");
            $("channel").focus();
          }
        },
        { title: "Search the messages", group: "Chat", icon: "search", keys: "f", run: beginSearch },
        ...(me.known ? [] : [{ title: "Change name", group: "Chat", icon: "edit", run: leave }])
      ]
    : []
);

/** Open the people room under the user's known or stored name, or ask for one. */
async function people() {
  if (current) return showChannels();
  const account = $("account") && (await fetchJson("sign-in/account", "your account"));
  if (current) return;
  me.known = account?.known_as ?? "";
  const name = me.known || stored("local", NAME);
  if (name) return enter(name);
  $("join").hidden = false;
  $("name").value ||= account?.name.slice(0, 40) ?? "";
  $("name").focus();
  $("name").select();
  fetchJson("chat/playground", "the server's name").then((found) => showServer(found?.server));
}
beginRooms({ people, playground: openPlayground });
