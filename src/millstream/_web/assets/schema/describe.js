// A readable description of a JSON Schema: names, types, limits, and descriptions. Nested schemas are collapsible.

import { element } from "../dom.js";
import { inline } from "../render/markdown.js";
import { hint, nameOf, options, present } from "./resolve.js";

const MAX_DEPTH = 8;
const SHOWN_OPTIONS = 24;
const MAX_NESTED = 1_000; // rows below the first level, because recursive schemas have very many

/** @param {Schema} schema @param {Schema} root */
const arrayType = (schema, root) => {
  if (schema.type === "array" && schema.items) {
    const items = present(schema.items, root);
    return `array of ${items.title ?? items.type ?? "values"}`;
  }
  return null;
};

/** @param {Schema} schema */
function values(schema) {
  const list = "const" in schema ? [{ value: schema.const }] : options(schema);
  if (!list) return null;
  const shown = list
    .slice(0, SHOWN_OPTIONS)
    .map(({ value }) => element("code", {}, typeof value === "string" ? value : JSON.stringify(value)));
  return element(
    "p",
    "choices",
    "const" in schema ? "Always " : "One of ",
    ...shown,
    list.length > SHOWN_OPTIONS ? ` and ${list.length - SHOWN_OPTIONS} more` : ""
  );
}

/**
 * Describe the properties, items, or alternatives of a schema; null if it has none.
 *
 * @param {Schema} schema
 * @param {Schema} root
 * @param {number} depth
 * @param {{left: number}} room for nested rows
 * @returns {HTMLElement | null}
 */
function describeChildren(schema, root, depth, room) {
  if (depth > MAX_DEPTH || room.left < 1 || options(schema)) return null;
  const properties = Object.entries(schema.properties ?? {});
  const parts = [];
  if (properties.length)
    parts.push(
      list(properties.map(([name, part]) => row(name, part, schema.required?.includes(name), root, depth, room)))
    );
  if (schema.additionalProperties && typeof schema.additionalProperties === "object")
    parts.push(list([row("any other name", schema.additionalProperties, false, root, depth, room, true)]));
  if (schema.type === "array" && schema.items) {
    const below = describeChildren(present(schema.items, root), root, depth + 1, room);
    if (below) parts.push(below);
  }
  /** @type {Schema[] | undefined} */
  const shapes = schema.anyOf ?? schema.oneOf ?? schema.prefixItems;
  if (shapes)
    parts.push(list(shapes.map((part, place) => row(nameOf(part, root, place), part, null, root, depth, room, true))));
  return parts.length ? element("div", "nested-schema", ...parts) : null;
}

/** @param {HTMLElement[]} rows */
const list = (rows) => element("ul", "properties", ...rows);

/**
 * @param {string} name
 * @param {Schema} given
 * @param {boolean | null} required
 * @param {Schema} root
 * @param {number} depth
 * @param {{left: number}} room
 * @returns {HTMLElement}
 */
function row(name, given, required, root, depth, room, loose = false) {
  if (depth) room.left -= 1;
  const schema = present(given, root);
  const kind = hint(schema).replace(/^array/, arrayType(schema, root) ?? "array");
  const head = element(
    "p",
    "property",
    element("code", { className: loose ? "loose" : "", dir: "auto" }, name),
    " ",
    element("span", "soft small", schema.nullable ? `${kind}, or null` : kind),
    required ? element("span", "badge accent", "required") : null
  );
  const words = schema.description
    ? element("p", { className: "words", dir: "auto" }, ...inline(schema.description))
    : null;
  const below = describeChildren(schema, root, depth + 1, room);
  const fields = below?.querySelector(".properties")?.childElementCount;
  const nested =
    below &&
    element(
      "details",
      { open: depth < 1 },
      element("summary", {}, fields === 1 ? "1 field" : `${fields} fields`),
      below
    );
  return element("li", {}, head, words, values(schema), nested);
}

/**
 * Describe a schema.
 *
 * @param {Json} given
 * @param {Json} root document for references
 * @param {string} none text for a schema without restrictions
 */
export function describe(given, root, none = "Any JSON.") {
  const schema = present(given, root);
  const room = { left: MAX_NESTED };
  const below = describeChildren(schema, root, 0, room);
  const about = schema.description
    ? element("p", { className: "words", dir: "auto" }, ...inline(schema.description))
    : null;
  if (below) return element("div", "schema", about, below);
  if (schema.type === "object" || (!schema.type && !options(schema)))
    return element("div", "schema", about, element("p", "soft", none));
  return element("div", "schema", list([row("value", given, null, root, 0, room, true)]));
}
