// Editors of objects, lists, maps, and alternatives. They contain other editors, created by `at.make`. Optional values are
// created on demand, so recursive schemas terminate.

import { element, firstVisible, icon, labeled, makeButton, showText, textInput } from "../dom.js";
import { nameOf, onlyValue, resolve } from "./resolve.js";
import { validate } from "./validate.js";

const MAX_INITIAL_ROWS = 10; // longer lists are completed by the user

/**
 * @typedef {object} Place what an editor is created for
 * @property {string} id of its control
 * @property {boolean} required
 * @property {number} depth
 * @property {Schema} root document for references
 * @property {{left: number}} room for further editors
 * @property {(name: string, schema: any, at: Place) => Editor} make creates an editor below it
 * @property {boolean} [variant] whether it's one of several alternatives
 *
 * @typedef {object} Editor
 * @property {HTMLElement} node
 * @property {() => any} read returns the value, or undefined; shows and throws `Unreadable`
 * @property {(value: any) => void} write shows a value
 * @property {(path: Path, message: string) => HTMLElement | null} complain shows a problem at a place below, and
 *   returns the control to focus, or null if there's none at that place
 * @property {() => void} clear hides all problems
 */

/** @param {string} text @param {string} iconName @param {() => void} onClick */
const smallButton = (text, iconName, onClick) => makeButton("quiet small", onClick, icon(iconName), text);

/**
 * Create the button that removes a row of a list or a map.
 *
 * @param {string} label
 * @param {Array<{node: HTMLElement}>} rows
 * @param {HTMLElement} row
 * @param {() => void} done
 */
const removeButton = (label, rows, row, done) =>
  makeButton(
    { className: "quiet small square", "aria-label": label, title: "Remove" },
    () => {
      rows.splice(
        rows.findIndex(({ node }) => node === row),
        1
      );
      row.remove();
      done();
    },
    icon("close")
  );

/** Return the options of an editor inside of another. @param {Place} at @param {string} id */
const below = (at, id, required = true, variant = false) => ({ ...at, id, required, variant, depth: at.depth + 1 });

/** Return the first visible input, or else the first visible button. @param {HTMLElement} node */
const firstField = (node) => firstVisible(node, "input, select, textarea") ?? firstVisible(node, "button");

/**
 * Create a fieldset with a title, an error, and a body; `footer` replaces the buttons above the body.
 *
 * @param {string} name
 * @param {Schema} schema
 * @param {Place} at
 * @param {HTMLElement[]} buttons
 * @param {HTMLElement | null} [footer]
 */
function frame(name, schema, { id, required }, buttons, footer = null) {
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  const body = element("div", "nested-body");
  const about = schema.description ? element("p", { className: "hint", dir: "auto" }, schema.description) : "";
  const optional = required ? "" : element("span", "hint", "optional");
  const legend = element("legend", {}, element("span", {}, schema.title ?? name), optional);
  const node = element(
    "fieldset",
    { id, className: "nested wide", tabIndex: -1 },
    legend,
    ...(footer ? [about, body, footer] : [element("div", "nested-tools", ...buttons), about, body]),
    error
  );
  /** @param {string} message */
  const showError = (message) => {
    showText(error, message);
    return node;
  };
  return { node, body, showError };
}

/**
 * Create the editors of an object's properties, and functions for all of them.
 *
 * @param {Schema} schema
 * @param {Place} at
 */
export function members(schema, at) {
  const required = new Set(schema.required ?? []);
  const list = Object.entries(schema.properties ?? {}).map(([name, part], index) => ({
    name,
    editor: at.make(name, part, below(at, `${at.id}-${index}`, required.has(name)))
  }));
  const read = () => {
    /** @type {Json} */
    const values = {};
    let firstError = null;
    for (const { name, editor } of list) {
      try {
        const value = editor.read();
        if (value !== undefined) values[name] = value;
      } catch (error) {
        firstError ??= error;
      }
    }
    if (firstError) throw firstError;
    return values;
  };
  /** @param {any} value */
  const write = (value) => list.forEach(({ name, editor }) => editor.write(value?.[name]));
  /** @type {Editor["complain"]} */
  const complain = ([first, ...rest], message) =>
    list.find(({ name }) => name === first)?.editor.complain(rest, message) ?? null;
  const clear = () => list.forEach(({ editor }) => editor.clear());
  // The tag of an alternative is already selected with the alternative.
  /** @param {string} name */
  const isHidden = (name) =>
    at.variant && onlyValue(resolve(schema.properties[name], at.root)) !== undefined && required.has(name);
  return {
    list,
    nodes: list.filter(({ name }) => !isHidden(name)).map(({ editor }) => editor.node),
    read,
    write,
    complain,
    clear
  };
}

/** @param {string} name @param {Schema} schema @param {Place} at @returns {Editor} */
export function object(name, schema, at) {
  /** @type {ReturnType<typeof members> | null} */
  let inner = null;
  // The pressed button disappears, so move the focus.
  const add = smallButton("Add", "add", () => {
    open();
    firstField(body)?.focus();
  });
  const remove = smallButton("Remove", "remove", () => {
    close();
    add.focus();
  });
  const { node, body, showError } = frame(name, schema, at, [add, remove]);
  const show = () => {
    add.hidden = inner !== null;
    remove.hidden = inner === null || at.required;
  };
  const open = () => {
    inner ??= members(schema, at);
    body.replaceChildren(...inner.nodes);
    show();
    return inner;
  };
  const close = () => {
    inner = null;
    body.replaceChildren();
    show();
  };
  if (at.required) open();
  else show();
  /** @param {any} value */
  const write = (value) => {
    if (value == null && !at.required) close();
    else open().write(value);
  };
  if (schema.default) write(schema.default);
  return {
    node,
    write,
    read: () => inner?.read(),
    complain: (path, message) =>
      (path.length && inner?.complain(path, message)) ||
      showError(path.length ? `${path.join(".")}: ${message}` : message),
    clear: () => {
      showError("");
      inner?.clear();
    }
  };
}

/** @param {string} name @param {Schema} schema @param {Place} at @returns {Editor} */
export function list(name, schema, at) {
  /** @type {Array<{editor: Editor, node: HTMLElement, remove: HTMLElement}>} */
  const rows = [];
  let lastNumber = 0;
  const min = Math.min(schema.minItems ?? 0, MAX_INITIAL_ROWS);
  const max = Math.min(schema.maxItems ?? Infinity, schema.items === false ? schema.prefixItems.length : Infinity);
  const isTuple = min > 0 && min === max; // added and removed as a whole
  const add = smallButton(isTuple ? "Add" : "Add item", "add", () => {
    const first = addRow(undefined);
    while (rows.length < min) addRow(undefined);
    firstField(first)?.focus();
  });
  const removeAll = smallButton("Remove", "remove", () => {
    write([]);
    add.focus();
  });
  const tools = element("div", "nested-tools", add, removeAll);
  const { node, body, showError } = frame(name, schema, at, [], tools);
  const updateButtons = () => {
    add.hidden = rows.length >= max;
    removeAll.hidden = Boolean(!isTuple || at.required || !rows.length);
    tools.hidden = rows.length >= max && removeAll.hidden;
    for (const row of rows) row.remove.hidden = isTuple || (at.required && rows.length <= min);
  };
  /** @param {number} index */
  const itemSchema = (index) => schema.prefixItems?.[index] ?? schema.items ?? {};
  /** @param {unknown} value */
  const addRow = (value) => {
    const number = ++lastNumber; // not the index: numbers of removed items aren't reused
    const editor = at.make(`Item ${number}`, itemSchema(rows.length), below(at, `${at.id}-i${number}`));
    const row = element("div", "nested-row", editor.node);
    const remove = removeButton(`Remove item ${number}`, rows, row, () => {
      updateButtons();
      add.focus();
    });
    row.append(remove);
    if (value !== undefined) editor.write(value);
    rows.push({ editor, node: row, remove });
    body.append(row);
    updateButtons();
    return row;
  };
  /** @param {any} value */
  const write = (value) => {
    rows.length = lastNumber = 0;
    body.replaceChildren();
    for (const each of Array.isArray(value) ? value : []) addRow(each);
    while (at.required && rows.length < min) addRow(undefined);
    updateButtons();
  };
  write(schema.default ?? []);
  return {
    node,
    write,
    read: () => (rows.length || at.required ? rows.map(({ editor }) => editor.read() ?? null) : undefined),
    complain: ([first, ...rest], message) => rows[Number(first)]?.editor.complain(rest, message) ?? showError(message),
    clear: () => {
      showError("");
      rows.forEach(({ editor }) => editor.clear());
    }
  };
}

/** Entries with names that users enter. @param {string} name @param {Schema} schema @param {Place} at @returns {Editor} */
export function map(name, schema, at) {
  /** @type {Array<{key: HTMLInputElement, editor: Editor, node: HTMLElement}>} */
  const rows = [];
  let lastNumber = 0;
  const add = smallButton("Add entry", "add", () => addRow("", undefined).focus());
  const { node, body, showError } = frame(name, schema, at, [], element("div", "nested-tools", add));
  /** @param {string} keyName @param {unknown} value */
  const addRow = (keyName, value) => {
    const id = `${at.id}-e${lastNumber++}`;
    const key = textInput({ id: `${id}-key`, value: keyName });
    const editor = at.make("Value", schema.additionalProperties, below(at, id));
    const row = element("div", "nested-row pair", labeled("Name", key), editor.node);
    row.append(removeButton("Remove this entry", rows, row, () => add.focus()));
    if (value !== undefined) editor.write(value);
    rows.push({ key, editor, node: row });
    body.append(row);
    return key;
  };
  /** @param {any} value */
  const write = (value) => {
    rows.length = 0;
    body.replaceChildren();
    for (const [keyName, each] of Object.entries(value ?? {})) addRow(keyName, each);
  };
  write(schema.default);
  return {
    node,
    write,
    read: () =>
      rows.length || at.required
        ? Object.fromEntries(rows.map(({ key, editor }) => [key.value, editor.read() ?? null]))
        : undefined,
    complain: ([first, ...rest], message) =>
      rows.find(({ key }) => key.value === first)?.editor.complain(rest, message) ?? showError(message),
    clear: () => {
      showError("");
      rows.forEach(({ editor }) => editor.clear());
    }
  };
}

/** One of several alternatives. @param {string} name @param {Schema} schema @param {Place} at @returns {Editor} */
export function variants(name, schema, at) {
  /** @type {Schema[]} */
  const parts = schema.anyOf ?? schema.oneOf;
  const optional = !at.required;
  const select = element("select", { id: `${at.id}-shape`, "aria-label": `Shape of ${schema.title ?? name}` });
  if (optional) select.append(element("option", { value: "" }, "–"));
  parts.forEach((part, index) =>
    select.append(element("option", { value: String(index) }, nameOf(part, at.root, index)))
  );
  const { node, body, showError } = frame(name, schema, at, [select]);
  /** @type {Editor | null} */
  let inner = null;
  const show = () => {
    const part = select.value === "" ? null : parts[Number(select.value)];
    inner =
      part &&
      at.make(nameOf(part, at.root, Number(select.value)), part, below(at, `${at.id}-v${select.value}`, true, true));
    inner?.node.classList.add("variant");
    body.replaceChildren(...(inner ? [inner.node] : []));
  };
  select.addEventListener("change", show);
  /** @param {any} value */
  const write = (value) => {
    if (value === undefined || (value === null && optional)) select.value = optional ? "" : "0";
    else
      select.value = String(
        Math.max(
          0,
          parts.findIndex((part) => validate(value, resolve(part, at.root), at.root).length === 0)
        )
      );
    show();
    if (value !== undefined) inner?.write(value);
  };
  write(schema.default ?? undefined);
  return {
    node,
    write,
    read: () => inner?.read(),
    complain: (path, message) => inner?.complain(path, message) ?? showError(message),
    clear: () => {
      showError("");
      inner?.clear();
    }
  };
}
