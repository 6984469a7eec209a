// The editors of objects, lists, maps and alternatives. Each is made of other editors, which `at.make` makes; what is
// optional is made only when somebody adds it, so that schemas that refer to themselves end.

import { element } from "../dom.js";
import { icon } from "../shell/icons.js";
import { nameOf, only, resolve } from "./resolve.js";
import { validate } from "./validate.js";

const MOST_ROWS = 10; // of a list that must have so many: the others are added by hand

/**
 * @typedef {object} Editor
 * @property {HTMLElement} node what is shown
 * @property {() => unknown} read the value, or undefined; throws `Unreadable` after it has said so in its place
 * @property {(value: unknown) => void} write shows a value
 * @property {(path: Array<string | number>, message: string) => HTMLElement} complain says what is wrong at a place
 *   below; gives what should have the focus
 * @property {() => void} clear takes complaints back
 */

const small = (text, shown, act) => {
  const button = element("button", { type: "button", className: "quiet small" }, icon(shown), text);
  button.addEventListener("click", act);
  return button;
};

/** Where one begins to type: an item that is an object has buttons, and those may be hidden. */
const firstField = (node) => [...node.querySelectorAll("input, select, textarea"), ...node.querySelectorAll("button")].find((each) => each.checkVisibility());

/** A frame with a title, what is wrong with the whole, and a body; `more` adds to the body's end, so it stands there. */
function frame(name, schema, { id, required }, buttons, more = null) {
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  const body = element("div", { className: "nested-body" });
  const about = schema.description ? element("p", { className: "hint", dir: "auto" }, schema.description) : "";
  const optional = required ? "" : element("span", { className: "hint" }, "optional");
  const legend = element("legend", {}, element("span", {}, schema.title ?? name), optional);
  const node = element("fieldset", { id, className: "nested wide", tabIndex: -1 }, legend, ...(more ? [about, body, more] : [element("div", { className: "nested-tools" }, ...buttons), about, body]), error);
  const say = (message) => {
    error.textContent = message;
    error.hidden = !message;
    return node;
  };
  return { node, body, say };
}

/** The editors of the properties of an object, and how they read, write and complain together. */
export function members(schema, at) {
  const required = new Set(schema.required ?? []);
  const list = Object.entries(schema.properties ?? {}).map(([name, part], index) => ({
    name,
    editor: at.make(name, part, { ...at, variant: false, id: `${at.id}-${index}`, required: required.has(name), depth: at.depth + 1 }),
  }));
  const read = () => {
    const found = {};
    let wrong = null;
    for (const { name, editor } of list) {
      try {
        const value = editor.read();
        if (value !== undefined) found[name] = value;
      } catch (error) {
        wrong ??= error;
      }
    }
    if (wrong) throw wrong;
    return found;
  };
  const write = (value) => list.forEach(({ name, editor }) => editor.write(value?.[name]));
  const complain = ([first, ...rest], message) => list.find(({ name }) => name === first)?.editor.complain(rest, message) ?? null;
  const clear = () => list.forEach(({ editor }) => editor.clear());
  // The tag of an alternative is what the alternative is chosen by.
  const hidden = (name) => at.variant && only(resolve(schema.properties[name], at.root)) !== undefined && required.has(name);
  return { list, nodes: list.filter(({ name }) => !hidden(name)).map(({ editor }) => editor.node), read, write, complain, clear };
}

export function object(name, schema, at) {
  let inner = null;
  // The button that was pressed goes, so the focus goes to what it made, and back.
  const add = small("Add", "add", () => (open(), firstField(body)?.focus()));
  const remove = small("Remove", "remove", () => (close(), add.focus()));
  const { node, body, say } = frame(name, schema, at, [add, remove]);
  const show = () => {
    add.hidden = inner !== null;
    remove.hidden = inner === null || at.required;
  };
  const open = () => {
    inner ??= members(schema, at);
    body.replaceChildren(...inner.nodes);
    show();
  };
  const close = () => {
    inner = null;
    body.replaceChildren();
    show();
  };
  if (at.required) open();
  else show();
  const write = (value) => {
    if (value === undefined || value === null) return at.required ? inner.write({}) : close();
    open();
    inner.write(value);
  };
  if (schema.default) write(schema.default);
  return {
    node, write,
    read: () => inner?.read(),
    complain: (path, message) => (path.length && inner?.complain(path, message)) || say(path.length ? `${path.join(".")}: ${message}` : message),
    clear: () => (say(""), inner?.clear()),
  };
}

export function list(name, schema, at) {
  const rows = [];
  let made = 0;
  const least = Math.min(schema.minItems ?? 0, MOST_ROWS);
  const most = Math.min(schema.maxItems ?? Infinity, schema.items === false ? schema.prefixItems.length : Infinity);
  const tuple = least > 0 && least === most; // all of it is there, or nothing
  const add = small(tuple ? "Add" : "Add item", "add", () => {
    const first = rowFor(undefined);
    while (rows.length < least) rowFor(undefined);
    firstField(first.node)?.focus();
  });
  const none = small("Remove", "remove", () => (write([]), add.focus()));
  const tools = element("div", { className: "nested-tools" }, add, none);
  const { node, body, say } = frame(name, schema, at, [], tools);
  const offer = () => {
    add.hidden = rows.length >= most;
    none.hidden = !tuple || at.required || !rows.length;
    tools.hidden = add.hidden && none.hidden;
    for (const row of rows) row.remove.hidden = tuple || (at.required && rows.length <= least);
  };
  const partOf = (index) => schema.prefixItems?.[index] ?? schema.items ?? {};
  const rowFor = (value) => {
    const index = rows.length;
    const called = ++made; // not its place: one that is gone leaves its name to nobody
    const editor = at.make(`Item ${called}`, partOf(index), { ...at, variant: false, id: `${at.id}-i${called}`, required: true, depth: at.depth + 1 });
    const remove = element("button", { type: "button", className: "quiet small square", "aria-label": `Remove item ${called}`, title: "Remove" }, icon("close"));
    const row = { editor, remove, node: null };
    remove.addEventListener("click", () => {
      rows.splice(rows.indexOf(row), 1);
      row.node.remove();
      offer();
      add.focus();
    });
    row.node = element("div", { className: "nested-row" }, editor.node, remove);
    if (value !== undefined) editor.write(value);
    rows.push(row);
    body.append(row.node);
    offer();
    return row;
  };
  const write = (value) => {
    rows.length = made = 0;
    body.replaceChildren();
    for (const each of Array.isArray(value) ? value : []) rowFor(each);
    while (at.required && rows.length < least) rowFor(undefined);
    offer();
  };
  write(schema.default ?? []);
  return {
    node, write,
    read: () => (rows.length || at.required ? rows.map(({ editor }) => editor.read() ?? null) : undefined),
    complain: ([first, ...rest], message) => rows[first]?.editor.complain(rest, message) ?? say(message),
    clear: () => (say(""), rows.forEach(({ editor }) => editor.clear())),
  };
}

/** Names that the person chooses, each with a value. */
export function map(name, schema, at) {
  const rows = [];
  let made = 0;
  const add = small("Add entry", "add", () => rowFor("", undefined).key.focus());
  const { node, body, say } = frame(name, schema, at, [], element("div", { className: "nested-tools" }, add));
  const rowFor = (named, value) => {
    const id = `${at.id}-e${made++}`;
    const key = element("input", { id: `${id}-key`, value: named, autocomplete: "off", spellcheck: false });
    const editor = at.make("Value", schema.additionalProperties, { ...at, variant: false, id, required: true, depth: at.depth + 1 });
    const row = { key, editor, node: null };
    const remove = element("button", { type: "button", className: "quiet small square", "aria-label": "Remove this entry", title: "Remove" }, icon("close"));
    remove.addEventListener("click", () => {
      rows.splice(rows.indexOf(row), 1);
      row.node.remove();
      add.focus();
    });
    const field = element("div", { className: "field" }, element("label", { htmlFor: key.id }, "Name"), key);
    row.node = element("div", { className: "nested-row pair" }, field, editor.node, remove);
    if (value !== undefined) editor.write(value);
    rows.push(row);
    body.append(row.node);
    return row;
  };
  const write = (value) => {
    rows.length = 0;
    body.replaceChildren();
    for (const [named, each] of Object.entries(value ?? {})) rowFor(named, each);
  };
  write(schema.default);
  return {
    node, write,
    read: () => (rows.length || at.required ? Object.fromEntries(rows.map(({ key, editor }) => [key.value, editor.read() ?? null])) : undefined),
    complain: ([first, ...rest], message) => rows.find(({ key }) => key.value === first)?.editor.complain(rest, message) ?? say(message),
    clear: () => (say(""), rows.forEach(({ editor }) => editor.clear())),
  };
}

/** One of several shapes. */
export function variants(name, schema, at) {
  const parts = schema.anyOf ?? schema.oneOf;
  const free = !at.required;
  const select = element("select", { id: `${at.id}-shape`, "aria-label": `Shape of ${schema.title ?? name}` });
  if (free) select.append(element("option", { value: "" }, "–"));
  parts.forEach((part, index) => select.append(element("option", { value: String(index) }, nameOf(part, at.root, index))));
  const { node, body, say } = frame(name, schema, at, [select]);
  let inner = null;
  const show = () => {
    const part = select.value === "" ? null : parts[Number(select.value)];
    inner = part && at.make(nameOf(part, at.root, Number(select.value)), part, { ...at, variant: true, id: `${at.id}-v${select.value}`, required: true, depth: at.depth + 1 });
    inner?.node.classList.add("variant");
    body.replaceChildren(...(inner ? [inner.node] : []));
  };
  select.addEventListener("change", show);
  const write = (value) => {
    if (value === undefined || (value === null && free)) select.value = free ? "" : "0";
    else select.value = String(Math.max(0, parts.findIndex((part) => validate(value, resolve(part, at.root), at.root).length === 0)));
    show();
    if (value !== undefined) inner?.write(value);
  };
  write(schema.default ?? undefined);
  return {
    node, write,
    read: () => inner?.read(),
    complain: (path, message) => inner?.complain(path, message) ?? say(message),
    clear: () => (say(""), inner?.clear()),
  };
}
