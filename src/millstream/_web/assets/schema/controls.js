// Controls of a form, and secret values.

import { element, pretty } from "../dom.js";
import { options, present } from "./resolve.js";

// Recognizes secrets by their schema or their name, so they aren't stored beyond the page.

// The names that the server hides in its log. A test compares both.
const NAMES =
  /authorization|cookie|passwo?r?d|passphrase|secret|token(?!s)|credential|sessionid|requeststate|(?:api|access|private|signing)key|key$|.auth$|pass$|jwt|bearer|signature|accesscode/;
const MAX_DEPTH = 8;

/** Whether the schema marks a text as a password. @param {Schema} schema */
export const isPassword = (schema) => schema.format === "password" || schema.writeOnly === true;

/**
 * Return the schemas of a place with all their alternatives.
 *
 * @param {Schema[]} schemas
 * @param {Schema} root
 * @returns {Schema[]}
 */
function shapes(schemas, root, depth = 0) {
  if (depth > MAX_DEPTH) return [];
  return schemas.flatMap((each) => {
    const found = present(each, root);
    return [found, ...shapes(found.anyOf ?? found.oneOf ?? [], root, depth + 1)];
  });
}

/** @type {(name: string) => (schema: Schema) => any} */
const member = (name) => (schema) => schema.properties?.[name] ?? schema.additionalProperties ?? [];
/** @type {(index: number) => (schema: Schema) => any} */
const item = (index) => (schema) => schema.prefixItems?.[index] ?? schema.items ?? [];

/** @param {any} value @param {Schema[]} schemas @param {Schema} root @param {string} name @returns {any} */
function strip(value, schemas, root, name) {
  const found = shapes(schemas, root);
  if (
    ["string", "number"].includes(typeof value) &&
    (NAMES.test(name.toLowerCase().replace(/[^a-z0-9]/g, "")) || found.some(isPassword))
  )
    return undefined;
  if (Array.isArray(value))
    return value
      .map((each, index) => strip(each, found.flatMap(item(index)), root, name))
      .filter((each) => each !== undefined);
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(([key, each]) => [key, strip(each, found.flatMap(member(key)), root, key)]);
  return Object.fromEntries(entries.filter(([, each]) => each !== undefined));
}

/** Return the values without secrets. @param {Json} values */
export const withoutSecrets = (values, schema = {}) => strip(values, [schema], schema, "");

// Editors of single values: choices, checkboxes, numbers, text, and JSON. `read` returns the value, or undefined if the
// field is empty.

/**
 * @typedef {{id: string, required?: boolean, single?: boolean}} ControlOptions
 * @typedef {object} Control
 * @property {HTMLElement} control
 * @property {() => any} read
 * @property {(value: any) => void} write
 * @property {boolean} [group]
 * @property {boolean} [check]
 * @property {boolean} [wide]
 */

/** The input can't be parsed as a value. */
export class Unreadable extends Error {
  /** @type {HTMLElement | null} the control to focus */
  control = null;
}

/** @param {Schema} schema @param {ControlOptions} options */
export function choice(schema, { id, required }) {
  const all = options(schema) ?? [];
  const control = element("select", { id });
  const at = () => (required && all.length === 1 ? 0 : all.findIndex((each) => each.value === schema.default));
  if (!required || at() < 0) control.append(element("option", { value: "" }, required ? "Choose…" : "–"));
  all.forEach((each, index) =>
    control.append(element("option", { value: String(index), selected: index === at() }, each.title))
  );
  /** @param {any} value */
  const write = (value) =>
    (control.value = String(all.findIndex((each) => JSON.stringify(each.value) === JSON.stringify(value))).replace(
      "-1",
      ""
    ));
  return { control, write, read: () => (control.value === "" ? undefined : all[Number(control.value)].value) };
}

/** @param {Schema} schema @param {ControlOptions} options */
export function several(schema, { id, required }) {
  const all = options(schema.items) ?? [];
  const boxes = all.map((each, index) =>
    element("input", { type: "checkbox", id: `${id}-${index}`, checked: (schema.default ?? []).includes(each.value) })
  );
  const labels = all.map((each, index) => element("label", "check", boxes[index], each.title));
  const control = element("div", { id, role: "group", className: "row", tabIndex: -1 }, ...labels);
  /** @param {any} value */
  const write = (value) => boxes.forEach((box, index) => (box.checked = (value ?? []).includes(all[index].value)));
  const read = () => {
    const found = all.filter((_, index) => boxes[index].checked).map((each) => each.value);
    return found.length || required ? found : undefined;
  };
  return { control, group: true, write, read };
}

/** True, false, or empty. @param {Schema} schema @param {ControlOptions} options */
export function tristate(schema, { id, required }) {
  return choice({ enum: [true, false], enumNames: ["true", "false"], default: schema.default }, { id, required });
}

/** @param {Schema} schema @param {ControlOptions} options */
export function flag(schema, { id }) {
  const control = element("input", { id, type: "checkbox", checked: schema.default === true });
  /** @param {any} value */
  const write = (value) => (control.checked = value === true);
  return { control, check: true, write, read: () => control.checked };
}

/** @param {Schema} schema @param {ControlOptions} options */
export function numeric(schema, { id }) {
  const integer = schema.type === "integer";
  const control = element("input", {
    id,
    type: "number",
    step: "any",
    autocomplete: "off",
    inputMode: integer ? "numeric" : "decimal"
  });
  /** @param {any} value */
  const write = (value) => (control.value = typeof value === "number" ? String(value) : "");
  write(schema.default);
  const read = () => {
    if (control.validity.badInput) throw new Unreadable("This isn't a number.");
    return control.value === "" ? undefined : Number(control.value);
  };
  return { control, write, read };
}

/** @type {Record<string, string>} */
const INPUTS = { email: "email", uri: "url", date: "date", "date-time": "datetime-local" };

/** @type {Record<string, string>} */
const PLACEHOLDERS = {
  time: "14:30:00",
  duration: "PT1H30M",
  uuid: "123e4567-e89b-12d3-a456-426614174000",
  ipv4: "192.0.2.1",
  ipv6: "2001:db8::1"
};

/** Convert a date-time to the value of a `datetime-local` field, in the local time zone. @param {string} text */
function toLocal(text) {
  const moment = new Date(text);
  if (Number.isNaN(moment.getTime())) return "";
  return new Date(moment.getTime() - moment.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

const LONG = 200; // characters that don't fit in a line

/** @param {Schema} schema @param {ControlOptions} options */
export function text(schema, { id, single = false }) {
  const type = isPassword(schema) ? "password" : (INPUTS[schema.format] ?? "text");
  const moment = schema.format === "date-time";
  const grows = type === "text" && !schema.format && !single;
  /** @type {any} an input or a textarea */
  const control = element(grows ? "textarea" : "input", {
    id,
    autocomplete: "off",
    dir: "auto",
    className: grows ? (schema.maxLength > LONG ? "grows long" : "grows") : "",
    placeholder: PLACEHOLDERS[schema.format] ?? ""
  });
  if (grows) control.rows = 1;
  else control.type = type;
  if (moment) control.step = "1";
  if (grows) {
    // Enter submits, and Shift-Enter starts a new line.
    control.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || matchMedia("(pointer: coarse)").matches)
        return;
      event.preventDefault();
      control.form?.requestSubmit();
    });
  }
  /** @param {any} value */
  const write = (value) => (control.value = typeof value !== "string" ? "" : moment ? toLocal(value) : value);
  write(schema.default);
  const read = () => {
    // An empty field is a missing value. To send an empty string, switch to JSON.
    if (control.value === "") return undefined;
    return moment ? new Date(control.value).toISOString() : control.value;
  };
  return { control, write, read };
}

/** A JSON field, for values without a field of their own. @param {Schema} schema @param {ControlOptions} options */
export function json(schema, { id }) {
  const control = element("textarea", { id, autocomplete: "off", spellcheck: false, className: "code" });
  control.placeholder = schema.type === "array" ? "[]" : schema.type === "object" ? "{}" : "JSON";
  /** @param {any} value */
  const write = (value) => (control.value = value == null ? "" : pretty(value));
  write(schema.default);
  const read = () => {
    if (control.value.trim() === "") return undefined;
    try {
      return JSON.parse(control.value);
    } catch (/** @type {any} */ error) {
      throw new Unreadable(`This isn't JSON: ${error.message}`);
    }
  };
  return { control, wide: true, write, read };
}

/** A constant. @param {Schema} schema @param {ControlOptions} options */
export function constant(schema, { id }) {
  const control = element("output", { id, className: "code" }, JSON.stringify(schema.const));
  return { control, write: () => {}, read: () => schema.const };
}
