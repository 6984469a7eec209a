// Which values are secrets, by their schema or their name: they aren't kept where they'd outlive the page.

import { present } from "./resolve.js";

// The same names that the server hides in its log; a test compares the two.
const NAMES = /authorization|cookie|passwo?r?d|passphrase|secret|token(?!s)|credential|sessionid|requeststate|key$/;
const MAX_DEPTH = 8;

/** Whether a text is shown as dots, because its schema says so. */
export const masked = (schema) => schema.format === "password" || schema.writeOnly === true;

/** The schemas of a place with all their alternatives. */
function shapes(schemas, root, depth = 0) {
  if (depth > MAX_DEPTH) return [];
  return schemas.flatMap((each) => {
    const found = present(each, root);
    return [found, ...shapes(found.anyOf ?? found.oneOf ?? [], root, depth + 1)];
  });
}

const member = (name) => (schema) => schema.properties?.[name] ?? schema.additionalProperties ?? [];
const item = (index) => (schema) => schema.prefixItems?.[index] ?? schema.items ?? [];

function stripped(value, schemas, root, name) {
  const found = shapes(schemas, root);
  if (["string", "number"].includes(typeof value) && (NAMES.test(name.toLowerCase().replace(/[^a-z0-9]/g, "")) || found.some(masked))) return undefined;
  if (Array.isArray(value)) return value.map((each, index) => stripped(each, found.flatMap(item(index)), root, name)).filter((each) => each !== undefined);
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(([key, each]) => [key, stripped(each, found.flatMap(member(key)), root, key)]);
  return Object.fromEntries(entries.filter(([, each]) => each !== undefined));
}

/** The same values without passwords and the like. */
export const withoutSecrets = (values, schema = {}) => stripped(values, [schema], schema, "");
