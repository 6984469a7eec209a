// Forms from JSON Schemas: fields for what fields can hold, however deep, and the same as JSON.

import { element, pretty } from "../dom.js";
import { Unreadable, choice, fixed, flag, json, numeric, several, text, tristate } from "./controls.js";
import { list, map, members, object, variants } from "./nested.js";
import { kindOf, limits, options, present, resolve } from "./resolve.js";
import { validate } from "./validate.js";

const MAX_DEPTH = 8;

function single(schema, required) {
  if ("const" in schema) return fixed;
  if (options(schema)) return choice;
  if (schema.type === "array" && options(schema.items ?? {})) return several;
  if (schema.type === "boolean") return !schema.nullable && (required || typeof schema.default === "boolean") ? flag : tristate;
  return { integer: numeric, number: numeric, string: text }[schema.type] ?? json;
}

function compound(schema, { depth, root }) {
  if (options(schema) || depth > MAX_DEPTH) return null;
  if (schema.anyOf || schema.oneOf) return variants;
  if (schema.type === "object" && Object.keys(schema.properties ?? {}).length) return object;
  if (schema.type === "object" && schema.additionalProperties && typeof schema.additionalProperties === "object") return map;
  const items = schema.items && present(schema.items, root);
  if (schema.type === "array" && (schema.prefixItems || (items && !options(items)))) return list;
  return null;
}

/** The editor for a value of that name. */
function make(name, given, at) {
  const schema = present(given, at.root);
  if (schema.type === "array" && schema.items) schema.items = present(schema.items, at.root);
  const nested = compound(schema, at);
  return nested ? nested(name, schema, at) : field(name, schema, at);
}

/** A labeled control: what it takes stands below it, and what is wrong with it. */
function field(name, schema, at) {
  const { id, required } = at;
  const made = single(schema, required)(schema, at);
  const kind = element("span", { className: "kind one-line", id: `${id}-kind` }, required ? kindOf(schema) : `${kindOf(schema)}, optional`);
  const [description, most] = [schema.description ?? "", limits(schema)];
  const about = element("span", { className: "hint", id: `${id}-hint`, hidden: !description && !most }, description ? element("span", { dir: "auto" }, description) : "", description && most ? ` (${most})` : most);
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  const title = schema.title ?? name;
  kind.title = kind.textContent;
  kind.hidden = kind.textContent === title; // an alternative may be called by its type
  made.control.setAttribute("aria-describedby", `${id}-kind ${id}-hint ${id}-error`);
  let label;
  if (made.group) {
    label = element("span", { className: "label", id: `${id}-label` }, title);
    made.control.setAttribute("aria-labelledby", label.id);
  } else if (made.check) label = element("label", { className: "check" }, made.control, title);
  else label = element("label", { htmlFor: id }, title);
  if (required && !made.check) label.append(element("span", { className: "required", "aria-hidden": "true", title: "Required" }, "•"));
  if (required && made.control.matches("input:not([type=checkbox]), select, textarea")) made.control.ariaRequired = "true";
  const node = element("div", { className: made.wide ? "field wide" : "field" }, element("div", { className: "head" }, label, kind), made.check ? "" : made.control, about, error);
  const blank = () => {
    try {
      return made.read() === undefined;
    } catch {
      return false;
    }
  };
  const complain = (path, message) => {
    // An item that's left empty is sent as null, but what's wrong with it is that it's empty.
    error.textContent = path.length ? `${path.join(".")}: ${message}` : message && required && blank() ? "Required." : message;
    error.hidden = !message;
    if (message) made.control.setAttribute("aria-invalid", "true");
    else made.control.removeAttribute("aria-invalid");
    return made.control;
  };
  const read = () => {
    try {
      return made.read();
    } catch (problem) {
      problem.control = complain([], problem.message);
      throw problem;
    }
  };
  made.control.addEventListener("input", () => error.hidden || complain([], ""));
  return { node, control: made.control, read, write: made.write, complain, clear: () => complain([], "") };
}

/** One field outside of any form that this module makes, for a value whose suggestions come from elsewhere. */
export const textField = (name, { description, required, id }) =>
  field(name, { type: "string", description, ...(required ? { minLength: 1 } : {}) }, { id, required, single: true, depth: 0, root: {} });

/**
 * A form for the properties of an object schema.
 *
 * @param {object} schema
 * @param {{id: string, label?: string}} options `id` begins the ids of its controls; `label` names the JSON
 */
export function schemaForm(schema, { id, label = "Arguments as JSON" }) {
  const whole = present(schema, schema);
  const inner = members(whole, { root: schema, id, depth: 0, required: true, make });
  const free = !inner.list.length && resolve(schema, schema).additionalProperties !== false;
  const raw = rawEditor(`${id}-raw`, label);
  raw.node.hidden = !free;
  const body = element("div", { className: "fields" }, ...inner.nodes, raw.node);
  const summary = element("p", { className: "error", id: `${id}-summary`, hidden: true, role: "alert" });
  const names = ["Form", "JSON"];
  const buttons = names.map((name) => element("button", { type: "button", "aria-pressed": String((name === "JSON") === free) }, name));
  const toolbar = inner.list.length ? element("div", { className: "segments", role: "group", "aria-label": "Edit as" }, ...buttons) : null;

  /** Show the form or the JSON, with what was entered in the other. */
  const turn = (asJson) => {
    if (asJson === !raw.node.hidden) return;
    try {
      if (asJson) raw.write(inner.read());
      else inner.write(raw.read());
    } catch (error) {
      if (!asJson) return void error.control?.focus();
    }
    raw.node.hidden = !asJson;
    for (const node of inner.nodes) node.hidden = asJson;
    buttons.forEach((each, index) => (each.ariaPressed = String((index === 1) === asJson)));
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => turn(index === 1)));

  const clear = () => {
    inner.clear();
    raw.complain("");
    summary.hidden = true;
  };
  const tell = (text) => {
    summary.textContent = text;
    summary.hidden = !text;
  };

  /** What is entered, unchecked. Throws what cannot be read. */
  const values = () => (raw.node.hidden ? inner.read() : raw.read());

  /**
   * What is entered, or null where something is wrong: that is then told in its place.
   *
   * @param {boolean} force take it as it is, even if it doesn't fit the schema
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
    const places = problems.map(({ path, message }) => (raw.node.hidden ? inner.complain(path, message) : raw.complain(`${path.join(".")}: ${message}`)));
    (places.find(Boolean) ?? raw.control).focus();
    const homeless = problems.filter((_, index) => !places[index]).map(({ path, message }) => `${path.join(".")}: ${message}`);
    tell([problems.length === 1 ? "One value doesn't fit the schema." : `${problems.length} values don't fit the schema.`, ...homeless].join(" "));
    return null;
  };
  const write = (value) => {
    clear();
    if (raw.node.hidden) inner.write(value);
    else raw.write(value);
  };
  return { node: body, toolbar, summary, read, write, values, turn, empty: !inner.list.length && !free };
}

function rawEditor(id, label) {
  const made = json({ type: "object" }, { id });
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  made.control.setAttribute("aria-describedby", error.id);
  const node = element("div", { className: "field wide" }, element("label", { htmlFor: id }, label), made.control, error);
  const complain = (message) => {
    error.textContent = message;
    error.hidden = !message;
    if (message) made.control.setAttribute("aria-invalid", "true");
    else made.control.removeAttribute("aria-invalid");
    return made.control;
  };
  const read = () => {
    try {
      return made.read() ?? {};
    } catch (problem) {
      problem.control = complain(problem.message);
      throw problem;
    }
  };
  const write = (value) => (made.control.value = pretty(value ?? {}));
  return { node, control: made.control, read, write, complain };
}
