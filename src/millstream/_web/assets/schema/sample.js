// Realistic sample values for JSON Schemas, for code examples and to fill in forms. Samples are validated; if none is
// valid, there's no sample.

import { options, present } from "./resolve.js";
import { validate } from "./validate.js";

const MAX_DEPTH = 8;
const MAX_ITEMS = 5;
const MAX_MS = 200; // Nested alternatives take exponential time.
const SITE = ["https:", "", "example.com", ""].join("/");
/** @type {Record<string, string>} */
const FORMATS = {
  date: "2026-03-14",
  time: "09:30:00Z",
  "date-time": "2026-03-14T09:30:00Z",
  duration: "PT1H",
  email: "ada@example.com",
  uuid: "123e4567-e89b-42d3-a456-426614174000",
  uri: SITE,
  url: SITE,
  hostname: "example.com",
  ipv4: "192.0.2.1",
  ipv6: "2001:db8::1"
};
/** @type {Array<[RegExp, string]>} */
const BY_NAME = [
  [/e?mail/i, "ada@example.com"],
  [/url|uri|link|website/i, SITE],
  [/city|town/i, "York"],
  [/country/i, "GB"],
  [/street|address/i, "1 Mill Lane"],
  [/time_?zone|tz$/i, "Europe/London"],
  [/lang|locale/i, "en"],
  [/(^|_)(user_?|first_?|last_?|full_?)?name$|customer|author|person/i, "Ada"],
  [/title|subject/i, "A title"],
  [/query|search|words?$/i, "mill"],
  [/message|text|note|content|body/i, "Hello"],
  [/path|file/i, "notes.txt"],
  [/currency/i, "EUR"],
  [/colou?r/i, "red"],
  [/(^|_)(id|key|sku|isbn|code|ref)$/i, "A-100"]
];

/** @typedef {{root: Schema, until: number}} At the document for references, and when to stop */

/** @param {Schema} schema @param {string} name */
function text(schema, name) {
  if (Object.hasOwn(FORMATS, schema.format)) return FORMATS[schema.format];
  if (schema.pattern !== undefined) {
    const candidates = [BY_NAME.find(([names]) => names.test(name))?.[1], "A-100", "Ada"];
    return candidates.find((each) => typeof each === "string" && !validate(each, schema).length);
  }
  const word = BY_NAME.find(([names]) => names.test(name))?.[1] ?? "text";
  return word.padEnd(Math.min(schema.minLength ?? 0, 1_000), word).slice(0, schema.maxLength ?? 1_000);
}

/** @param {Schema} schema @param {string} name */
function number(schema, name) {
  const low = schema.minimum ?? (schema.exclusiveMinimum === undefined ? -Infinity : schema.exclusiveMinimum);
  const high = schema.maximum ?? (schema.exclusiveMaximum === undefined ? Infinity : schema.exclusiveMaximum);
  const step = schema.multipleOf ?? 1;
  const start = Number.isFinite(low)
    ? Math.ceil(low / step) * step
    : Math.min(0, Number.isFinite(high) ? Math.floor(high / step) * step : 0);
  const middle = Number.isFinite(low) && Number.isFinite(high) ? (low + high) / 2 : 0;
  const candidates = [
    /price|cost|amount/i.test(name) && schema.type === "number" ? 9.5 : step,
    start,
    start + step,
    start - step,
    low,
    high,
    middle
  ];
  return candidates.find((each) => Number.isFinite(each) && !validate(each, schema).length);
}

/**
 * Return an object with the required properties, or the first property if none is required.
 *
 * @param {Schema} schema
 * @param {At} at
 * @param {number} depth
 */
function object(schema, at, depth) {
  /** @type {Json} */
  const made = {};
  const properties = schema.properties ?? {};
  for (const name of schema.required ?? []) {
    const value = make(properties[name] ?? {}, at, name, depth + 1);
    if (value === undefined) return undefined;
    made[name] = value;
  }
  if (depth === 0 && !Object.keys(made).length && Object.keys(properties).length) {
    const [name, part] = Object.entries(properties)[0];
    const value = make(part, at, name, depth + 1);
    if (value != null) made[name] = value;
  }
  for (let number = 1; Object.keys(made).length < (schema.minProperties ?? 0) && number <= MAX_ITEMS; number += 1) {
    const [name, part] = Object.entries(properties).find(([each]) => !(each in made)) ?? [
      `name_${number}`,
      schema.additionalProperties ?? {}
    ];
    made[name] = make(part, at, name, depth + 1) ?? "text";
  }
  return made;
}

/** @param {Schema} schema @param {At} at @param {string} name @param {number} depth */
function array(schema, at, name, depth) {
  const first = schema.prefixItems ?? [];
  const min = Math.max(schema.minItems ?? 0, first.length);
  const length = Math.min(
    Math.max(min, schema.items && depth < MAX_DEPTH ? 1 : 0),
    schema.maxItems ?? Infinity,
    Math.max(MAX_ITEMS, min)
  );
  const singular = name.replace(/s$/, "");
  const items = Array.from({ length }, (_, index) => make(first[index] ?? schema.items ?? {}, at, singular, depth + 1));
  if (items.includes(undefined)) return min ? undefined : [];
  if (schema.uniqueItems)
    return items.map((each, index) =>
      index === 0
        ? each
        : typeof each === "number"
          ? each + index
          : typeof each === "string"
            ? (options(present(schema.items ?? {}, at.root))?.[index]?.value ?? `${each}${index}`)
            : each
    );
  return items;
}

/** @param {unknown} given @param {At} at @param {string} name @param {number} depth @returns {any} */
function make(given, at, name, depth) {
  if (depth > MAX_DEPTH || given === false || performance.now() > at.until) return undefined;
  const schema = present(given === true ? {} : given, at.root);
  const value = makeResolved(schema, at, name, depth);
  return value === undefined && schema.nullable ? null : value;
}

/**
 * Return a value for a resolved schema.
 *
 * @param {Schema} schema
 * @param {At} at
 * @param {string} name
 * @param {number} depth
 */
function makeResolved(schema, at, name, depth) {
  if ("const" in schema) return schema.const;
  /** @param {unknown} value */
  const fits = (value) => value !== undefined && !validate(value, schema, at.root).length;
  const declared = [schema.examples?.[0], schema.example, schema.default].find(
    (each) => each !== null && each !== "" && fits(each)
  );
  if (declared !== undefined) return declared;
  const all = options(schema);
  if (all?.length) return all[0].value;
  const parts = schema.anyOf ?? schema.oneOf;
  if (parts) {
    const { anyOf, oneOf, ...rest } = schema;
    for (const part of parts) {
      const value = make({ ...rest, ...present(part, at.root) }, at, name, depth + 1);
      if (fits(value)) return value;
    }
    return undefined;
  }
  /** @type {Record<string, () => any>} */
  const kinds = {
    object: () => object(schema, at, depth),
    array: () => array(schema, at, name, depth),
    string: () => text(schema, name),
    integer: () => number(schema, name),
    number: () => number(schema, name),
    boolean: () => true,
    null: () => null
  };
  return kinds[schema.type] ? kinds[schema.type]() : "text";
}

/**
 * Return a valid value, or undefined.
 *
 * @param {Json} schema
 * @param {Json} root document for references
 */
export function sample(schema, root = schema) {
  const value = make(schema, { root, until: performance.now() + MAX_MS }, "", 0);
  return value !== undefined && !validate(value, schema, root).length ? value : undefined;
}
