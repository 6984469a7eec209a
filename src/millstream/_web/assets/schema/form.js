// Forms from JSON Schemas: nested fields, and an editor for the same values as JSON.

import { element, pretty, segments, showText } from "../dom.js";
import { choice, constant, flag, json, numeric, several, text, tristate, Unreadable } from "./controls.js";
import { list, map, members, object, variants } from "./nested.js";
import { kindOf, limits, options, present, resolve } from "./resolve.js";
import { validate } from "./validate.js";

/** @typedef {import("./controls.js").Control} Control */
/** @typedef {import("./controls.js").ControlOptions} ControlOptions */
/** @typedef {import("./nested.js").Editor} Editor */
/** @typedef {import("./nested.js").Place} Place */

const MAX_DEPTH = 8;
const MAX_NESTED = 500; // further editors are JSON, because recursive schemas have very many

/** @type {Record<string, typeof text | typeof numeric>} */
const BY_TYPE = { integer: numeric, number: numeric, string: text };

/**
 * @param {Schema} schema
 * @param {boolean | undefined} required
 * @returns {(schema: Schema, options: ControlOptions) => Control}
 */
function fieldEditor(schema, required) {
  if ("const" in schema) return constant;
  if (options(schema)) return choice;
  if (schema.type === "array" && options(schema.items ?? {})) return several;
  if (schema.type === "boolean")
    return !schema.nullable && (required || typeof schema.default === "boolean") ? flag : tristate;
  return BY_TYPE[schema.type] ?? json;
}

/** @param {Schema} schema @param {Place} at */
function nestedEditor(schema, { depth, root }) {
  if (options(schema) || depth > MAX_DEPTH) return null;
  if (schema.anyOf || schema.oneOf) return variants;
  if (schema.type === "object" && Object.keys(schema.properties ?? {}).length) return object;
  if (schema.type === "object" && schema.additionalProperties && typeof schema.additionalProperties === "object")
    return map;
  const items = schema.items && present(schema.items, root);
  if (schema.type === "array" && (schema.prefixItems || (items && !options(items)))) return list;
  return null;
}

/** Create the editor for a named value. @param {string} name @param {unknown} given @param {Place} at @returns {Editor} */
function make(name, given, at) {
  const schema = present(given, at.root);
  if (schema.type === "array" && schema.items) schema.items = present(schema.items, at.root);
  at.room.left -= 1;
  const nested = at.room.left < 0 ? null : nestedEditor(schema, at);
  return nested ? nested(name, schema, at) : field(name, schema, at);
}

/**
 * Create a labeled control with its hint and its error.
 *
 * @param {string} name
 * @param {Schema} schema
 * @param {ControlOptions} at
 */
function field(name, schema, at) {
  const { id, required } = at;
  const editor = fieldEditor(schema, required)(schema, at);
  const kind = element(
    "span",
    { className: "kind one-line", id: `${id}-kind` },
    required ? kindOf(schema) : `${kindOf(schema)}, optional`
  );
  const [description, limit] = [schema.description ?? "", limits(schema)];
  const about = element(
    "span",
    { className: "hint", id: `${id}-hint`, hidden: !description && !limit },
    description ? element("span", { dir: "auto" }, description) : "",
    description && limit ? ` (${limit})` : limit
  );
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  const title = schema.title ?? name;
  kind.title = kind.textContent;
  kind.hidden = kind.textContent === title; // alternatives without a title are named after their type
  editor.control.setAttribute("aria-describedby", `${id}-kind ${id}-hint ${id}-error`);
  let label;
  if (editor.group) {
    label = element("span", { className: "label", id: `${id}-label` }, title);
    editor.control.setAttribute("aria-labelledby", label.id);
  } else if (editor.check) label = element("label", "check", editor.control, title);
  else label = element("label", { htmlFor: id }, title);
  if (required && !editor.check)
    label.append(element("span", { className: "required", "aria-hidden": "true", title: "Required" }, "•"));
  if (required && editor.control.matches("input:not([type=checkbox]), select, textarea"))
    editor.control.ariaRequired = "true";
  const node = element(
    "div",
    editor.wide ? "field wide" : "field",
    element("div", "head", label, kind),
    editor.check ? "" : editor.control,
    about,
    error
  );
  const isBlank = () => {
    try {
      return editor.read() === undefined;
    } catch {
      return false;
    }
  };
  /** @param {Path} path @param {string} message */
  const complain = (path, message) => {
    // An empty item is validated as null, but the useful message is that it's required.
    error.textContent = path.length
      ? `${path.join(".")}: ${message}`
      : message && required && isBlank()
        ? "Required."
        : message;
    error.hidden = !message;
    editor.control.ariaInvalid = message ? "true" : null;
    return editor.control;
  };
  const read = () => {
    try {
      return editor.read();
    } catch (/** @type {any} */ problem) {
      problem.control = complain([], problem.message);
      throw problem;
    }
  };
  editor.control.addEventListener("input", () => error.hidden || complain([], ""));
  return { node, control: editor.control, read, write: editor.write, complain, clear: () => complain([], "") };
}

/**
 * Create a text field outside of a schema form.
 *
 * @param {string} name
 * @param {{description?: string, required?: boolean, id: string}} options
 */
export const textField = (name, { description, required, id }) =>
  field(name, { type: "string", description, ...(required ? { minLength: 1 } : {}) }, { id, required, single: true });

/**
 * Create a form for the properties of an object schema.
 *
 * @param {Json} schema
 * @param {{id: string, label?: string}} options `id` is the prefix of the controls' ids; `label` names the JSON editor
 */
export function schemaForm(schema, { id, label = "Arguments as JSON" }) {
  const whole = present(schema, schema);
  const inner = members(whole, { root: schema, id, depth: 0, required: true, room: { left: MAX_NESTED }, make });
  const jsonOnly = !inner.list.length && resolve(schema, schema).additionalProperties !== false;
  const raw = rawEditor(`${id}-raw`, label);
  raw.node.hidden = !jsonOnly;
  const body = element("div", "fields", ...inner.nodes, raw.node);
  const summary = element("p", { className: "error", id: `${id}-summary`, hidden: true, role: "alert" });
  const { bar, mark } = segments("Edit as", ["Form", "JSON"], (name) => showJson(name === "JSON"));
  mark(jsonOnly ? "JSON" : "Form");
  const toolbar = inner.list.length ? bar : null;

  /** Switch between the form and JSON, keeping the values. @param {boolean} asJson */
  const showJson = (asJson) => {
    if (asJson === !raw.node.hidden) return;
    try {
      if (asJson) raw.write(inner.read());
      else inner.write(raw.read());
    } catch (/** @type {any} */ error) {
      if (!asJson) return void error.control?.focus();
    }
    raw.node.hidden = !asJson;
    for (const node of inner.nodes) node.hidden = asJson;
    mark(asJson ? "JSON" : "Form");
  };

  const clear = () => {
    inner.clear();
    raw.complain("");
    summary.hidden = true;
  };

  /** Return the entered values without validation. Throws `Unreadable`. */
  const values = () => (raw.node.hidden ? inner.read() : raw.read());

  /**
   * Return the entered values, or show the problems and return null.
   *
   * @param {boolean} force skip validation
   */
  const read = (force = false) => {
    clear();
    let value;
    try {
      value = values();
    } catch (error) {
      if (!(error instanceof Unreadable)) throw error;
      (error.control ?? raw.control).focus();
      return null;
    }
    const problems = force ? [] : validate(value, schema);
    if (!problems.length) return value;
    const controls = problems.map(({ path, message }) =>
      raw.node.hidden ? inner.complain(path, message) : raw.complain(`${path.join(".")}: ${message}`)
    );
    (controls.find(Boolean) ?? raw.control).focus();
    const unplaced = problems
      .filter((_, index) => !controls[index])
      .map(({ path, message }) => `${path.join(".")}: ${message}`);
    showText(
      summary,
      [
        problems.length === 1 ? "One value doesn't fit the schema." : `${problems.length} values don't fit the schema.`,
        ...unplaced
      ].join(" ")
    );
    return null;
  };
  /** @param {any} value */
  const write = (value) => {
    clear();
    if (raw.node.hidden) inner.write(value);
    else raw.write(value);
  };
  return { node: body, toolbar, summary, read, write, values, showJson, empty: !inner.list.length && !jsonOnly };
}

/** @param {string} id @param {string} label */
function rawEditor(id, label) {
  const editor = json({ type: "object" }, { id });
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  editor.control.setAttribute("aria-describedby", error.id);
  const node = element("div", "field wide", element("label", { htmlFor: id }, label), editor.control, error);
  /** @param {string} message */
  const complain = (message) => {
    showText(error, message);
    editor.control.ariaInvalid = message ? "true" : null;
    return editor.control;
  };
  const read = () => {
    try {
      return editor.read() ?? {};
    } catch (/** @type {any} */ problem) {
      problem.control = complain(problem.message);
      throw problem;
    }
  };
  /** @param {any} value */
  const write = (value) => (editor.control.value = pretty(value ?? {}));
  return { node, control: editor.control, read, write, complain };
}
