// Recognizes secrets by their schema or their name, so they aren't stored beyond the page.

import { present } from "./resolve.js";

// The names that the server hides in its log. A test compares both.
const NAMES = /authorization|cookie|passwo?r?d|passphrase|secret|token(?!s)|credential|sessionid|requeststate|key$/;
const MAX_DEPTH = 8;

/** Whether the schema marks a text as a password. */
export const isPassword = (schema) => schema.format === "password" || schema.writeOnly === true;

/** Return the schemas of a place with all their alternatives. */
function shapes(schemas, root, depth = 0) {
  if (depth > MAX_DEPTH) return [];
  return schemas.flatMap((each) => {
    const found = present(each, root);
    return [found, ...shapes(found.anyOf ?? found.oneOf ?? [], root, depth + 1)];
  });
}

const member = (name) => (schema) => schema.properties?.[name] ?? schema.additionalProperties ?? [];
const item = (index) => (schema) => schema.prefixItems?.[index] ?? schema.items ?? [];

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

/** Return the values without secrets. */
export const withoutSecrets = (values, schema = {}) => strip(values, [schema], schema, "");
