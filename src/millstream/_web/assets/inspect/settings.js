// Connection settings: headers, a key, client capabilities, and roots. Headers and keys are stored until the tab is closed,
// the others permanently.

import { page } from "./host.js";
import { EXTENSION, MIME } from "../apps/bridge.js";
import {
  $,
  element,
  icon,
  labeled,
  makeButton,
  onSubmit,
  openDialog,
  showText,
  store,
  stored,
  textInput
} from "../dom.js";

const HEADERS = "millstream.inspect.headers";
const CAPABLE = "millstream.inspect.capabilities";
const ROOTS = "millstream.inspect.roots";
const ABILITIES = {
  elicitation: "Elicitation: answer forms and links",
  sampling: "Sampling: play the model",
  roots: "Roots: name folders",
  tasks: "Tasks: follow calls that become tasks"
};
const TASKS = "io.modelcontextprotocol/tasks";
const NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;

/** @type {Record<string, string>} */
let headers = stored("session", HEADERS, {});
let place = HEADERS; // of the current server's headers
/** @type {string[]} */
let able = stored("local", CAPABLE, Object.keys(ABILITIES));
/** @type {Json[]} */
let known = stored("local", ROOTS, []);

/** Use the headers of another server, or of this one. A key for one server must not reach another. @param {string} [url] */
export function useServer(url = "") {
  place = url ? `${HEADERS} ${url}` : HEADERS;
  headers = stored("session", place, {});
  tell();
}

/** Return the user's headers for each request to the current server. */
export const ownHeaders = () => ({ ...headers });

/** Return the client capabilities. */
export const capabilities = () => ({
  ...Object.fromEntries(
    able.filter((name) => name !== "tasks").map((name) => [name, name === "roots" ? { listChanged: true } : {}])
  ),
  extensions: { [EXTENSION]: { mimeTypes: [MIME] }, ...(able.includes("tasks") ? { [TASKS]: {} } : {}) }
});

/** Return the roots that are sent without asking: `{uri, name?}`. */
export const roots = () => known;

/** Remove the key, because the user signs in instead. */
export function forgetKey() {
  headers = Object.fromEntries(Object.entries(headers).filter(([name]) => name.toLowerCase() !== "authorization"));
  store("session", place, headers);
  tell();
}

/** @param {Json[]} list */
export function setRoots(list) {
  known = list;
  store("local", ROOTS, known);
}

const bearer = () => /^Bearer (.*)$/.exec(headers.authorization ?? headers.Authorization ?? "")?.[1] ?? "";

/** @param {HTMLElement} list */
function row(list, name = "", value = "") {
  const key = textInput({ value: name, placeholder: "Name", "aria-label": "Name of the header" });
  const text = textInput({ value, placeholder: "Value", "aria-label": "Value of the header" });
  const remove = makeButton(
    { className: "quiet small square", "aria-label": "Remove this header", title: "Remove" },
    () => made.remove(),
    icon("close")
  );
  const made = element("div", "header-row", key, text, remove);
  list.append(made);
  return key;
}

/** Open the dialog; `focus` is "key" to focus the key. */
export function openSettings(focus = "") {
  const key = textInput({ id: "settings-key", type: "password", value: bearer() });
  const list = element("div", { className: "stack tight", role: "group", "aria-label": "Headers" });
  for (const [name, value] of Object.entries(headers))
    if (name.toLowerCase() !== "authorization" || !bearer()) row(list, name, value);
  const add = makeButton("quiet small", () => row(list).focus(), icon("add"), "Add a header");
  const boxes = Object.entries(ABILITIES).map(([name, title]) => ({
    name,
    title,
    box: element("input", { type: "checkbox", checked: able.includes(name) })
  }));
  const error = element("p", { className: "error", role: "alert", hidden: true });
  const cancel = makeButton("", () => dialog.close(), "Cancel");
  const form = element(
    "form",
    "stack",
    element("h2", { id: "settings-title" }, "Connection settings"),
    labeled(
      "Key or token",
      key,
      element("span", "hint", "Sent as Authorization: Bearer. This tab forgets it when you close it.")
    ),
    element(
      "div",
      "field",
      element("span", "label", "Headers"),
      list,
      element("div", {}, add),
      element(
        "span",
        "hint",
        "Sent with every HTTP request. Browsers can't add headers to a WebSocket. Other servers get only headers that start with Mcp-."
      )
    ),
    element(
      "div",
      { className: "field", role: "group", "aria-label": "Capabilities" },
      element("span", "label", "Capabilities of this client"),
      ...boxes.map(({ box, title }) => element("label", "check", box, title))
    ),
    error,
    element("div", "row end", cancel, element("button", { type: "submit", className: "primary" }, "Save and reconnect"))
  );
  onSubmit(form, () => {
    const pairs = [...list.children]
      .map((each) => [...each.querySelectorAll("input")].map((input) => input.value.trim()))
      .filter(([name]) => name);
    const wrong = pairs.find(([name, value]) => !NAME.test(name) || /[^\x20-\xff]/.test(value));
    if (wrong) {
      showText(error, `${wrong[0]} can't be sent as a header.`);
      return;
    }
    headers = { ...Object.fromEntries(pairs), ...(key.value ? { authorization: `Bearer ${key.value}` } : {}) };
    able = boxes.filter(({ box }) => box.checked).map(({ name }) => name);
    store("session", place, headers);
    store("local", CAPABLE, able);
    dialog.close();
    tell();
    page.reconnect();
  });
  const dialog = openDialog({ id: "settings", "aria-labelledby": "settings-title" }, form);
  if (focus !== "key") cancel.focus();
}

function tell() {
  $("settings-count").textContent = String(Object.keys(headers).length || "");
}

$("open-settings").onclick = () => openSettings();
tell();
