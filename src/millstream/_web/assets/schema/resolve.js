// Resolves a JSON Schema for editing: follows references, removes `null` alternatives, and merges `allOf`.

const MAX_STEPS = 20;
const MAX_DEPTH = 20;
const MAX_PARTS = 100; // of `allOf`, nested ones included
/** Whether a value is an object, and neither null nor an array. @param {unknown} value @returns {value is Json} */
export const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
/** @param {unknown} value */
const isSchema = (value) => isObject(value) || typeof value === "boolean";
/** @type {(type: string) => (value: unknown) => boolean} */
const of = (type) => (value) => typeof value === type;
/** @type {Record<string, (value: unknown) => boolean>} */
const EXPECTED = Object.fromEntries(
  Object.entries({
    "properties patternProperties $defs definitions dependentRequired": isObject,
    "anyOf oneOf allOf prefixItems enum enumNames examples required": Array.isArray,
    "items additionalProperties contains propertyNames not if then else": isSchema,
    "$ref title description format pattern": of("string"),
    "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength minItems maxItems minProperties maxProperties":
      of("number"),
    /** @param {any} value */
    type: (value) => [value].flat().length > 0 && [value].flat().every(of("string"))
  }).flatMap(([names, test]) => names.split(" ").map((name) => [name, test]))
);
const LISTS = new Set(["anyOf", "oneOf", "allOf", "prefixItems"]);

/**
 * Leave out the keywords whose value has the wrong type, because servers send any JSON as a schema.
 *
 * @param {Schema} schema
 */
function usable(schema) {
  /** @param {unknown[]} list */
  const parts = (list) => list.filter(isSchema).map((part) => (part === true ? {} : part || { not: {} }));
  const entries = Object.entries(schema).filter(([key, value]) => EXPECTED[key]?.(value) ?? true);
  const used = entries.map(([key, value]) => [key, LISTS.has(key) ? parts(value) : value]);
  return Object.fromEntries(used.filter(([key, value]) => !LISTS.has(key) || value.length));
}

/**
 * Follow the reference of a schema. Returns the empty schema for `true` and for unknown references.
 *
 * @param {unknown} schema
 * @param {Schema | boolean} root
 * @returns {Schema}
 */
export function resolve(schema, root) {
  /** @type {any} */
  let found = schema;
  for (let steps = 0; found && typeof found.$ref === "string" && steps < MAX_STEPS; steps += 1) {
    const { $ref, ...siblings } = found;
    const target = $ref
      .replace(/^#\/?/, "")
      .split("/")
      .filter(Boolean)
      .reduce((/** @type {any} */ node, /** @type {string} */ part) => node?.[unescaped(part)], root);
    found = isObject(target) ? { ...target, ...siblings } : target;
  }
  return isObject(found) ? usable(found) : {};
}

/** Decode one part of a JSON pointer. @param {string} part */
function unescaped(part) {
  try {
    return decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~");
  } catch {
    return part;
  }
}

/**
 * Merge the parts of `allOf` into one schema, as far as an editor needs it.
 *
 * @param {Schema} schema
 * @param {Schema} root
 */
function mergeAllOf(schema, root, room = { left: MAX_PARTS }) {
  if (!schema.allOf) return schema;
  const { allOf, ...own } = schema;
  let whole = own;
  for (const each of allOf) {
    if (room.left < 1) break;
    room.left -= 1;
    const part = mergeAllOf(resolve(each, root), root, room);
    const properties = { ...whole.properties, ...part.properties, ...whole.properties };
    const required = [...new Set([...(part.required ?? []), ...(whole.required ?? [])])];
    whole = { ...part, ...whole };
    if (whole.properties) whole.properties = properties;
    if (whole.required) whole.required = required;
  }
  return whole;
}

/** @param {unknown} part @param {Schema} root */
const isNull = (part, root) => {
  const found = resolve(part, root);
  return found.type === "null" || ("const" in found && found.const === null);
};
/** @param {unknown} type */
const isNumber = (type) => type === "integer" || type === "number";

/**
 * Prepare a schema for an editor: resolve it, and replace a `null` alternative by `nullable`, because an empty field
 * means null.
 *
 * @param {unknown} schema
 * @param {Schema} root
 * @returns {Schema}
 */
export function present(schema, root, depth = 0) {
  const found = mergeAllOf(resolve(schema, root), root);
  const parts = found.anyOf ?? found.oneOf;
  if (parts && depth < MAX_DEPTH) {
    const remaining = parts.filter((/** @type {unknown} */ part) => !isNull(part, root));
    const nullable = found.nullable || remaining.length < parts.length;
    const rest = { ...found, anyOf: undefined, oneOf: undefined };
    if (remaining.length === 1)
      return { ...rest, ...present(remaining[0], root, depth + 1), ...annotations(found), nullable };
    // `int | float` needs only one number field.
    if (remaining.every((/** @type {unknown} */ part) => isNumber(resolve(part, root).type)))
      return { ...rest, type: "number", nullable };
    return { ...rest, anyOf: remaining, nullable };
  }
  if (Array.isArray(found.type)) {
    const types = found.type.filter((/** @type {string} */ type) => type !== "null");
    const nullable = types.length < found.type.length;
    if (types.every(isNumber)) return { ...found, type: types.length ? "number" : "null", nullable };
    if (types.length === 1) return { ...found, type: types[0], nullable };
    return { ...found, type: undefined, anyOf: types.map((type) => ({ type })), nullable };
  }
  if (!found.type && found.properties) return { ...found, type: "object" };
  return found;
}

/**
 * Return the annotations beside the alternatives, which take precedence over those of an alternative.
 *
 * @param {Schema} schema
 */
const annotations = ({ title, description, default: preset }) =>
  Object.fromEntries(
    Object.entries({ title, description, default: preset }).filter(([, value]) => value !== undefined)
  );

/**
 * Return the choices of an enumeration in any of its forms, as `{value, title}`; null if it isn't one.
 *
 * @param {Schema} schema
 * @returns {Array<{value: any, title: string}> | null}
 */
export function options(schema) {
  /** @type {unknown[] | undefined} */
  const values = schema.enum;
  if (values)
    return values
      .filter((value) => value !== null || !schema.nullable)
      .map((value, index) => ({
        value,
        title: String(schema.enumNames?.[index] ?? (typeof value === "object" ? JSON.stringify(value) : value))
      }));
  /** @type {Schema[] | undefined} */
  const parts = schema.oneOf ?? schema.anyOf;
  if (!parts?.length || !parts.every((part) => isObject(part) && "const" in part)) return null;
  return parts.map((part) => ({ value: part.const, title: String(part.title ?? part.const) }));
}

/** @type {Array<[string, string, string]>} */
const RANGES = [
  ["minimum", "maximum", ""],
  ["minLength", "maxLength", "character"],
  ["minItems", "maxItems", "item"]
];
/** @type {Array<[string, (value: unknown) => string]>} */
const LIMITS = [
  ["exclusiveMinimum", (value) => `more than ${value}`],
  ["exclusiveMaximum", (value) => `less than ${value}`],
  ["multipleOf", (value) => `a multiple of ${value}`],
  ["pattern", (value) => `matches ${value}`]
];

/** @param {number | undefined} low @param {number | undefined} high @param {string} unit */
function range(low, high, unit) {
  const words =
    high === undefined
      ? `at least ${low}`
      : low === undefined
        ? `at most ${high}`
        : low === high
          ? `exactly ${low}`
          : `${low} to ${high}`;
  return unit ? `${words} ${unit}${(high ?? low) === 1 ? "" : "s"}` : words;
}

/** Return the displayed type of a value. @param {Schema} schema */
export const kindOf = (schema) =>
  [
    schema.type ?? (options(schema) ? "value" : schema.anyOf || schema.oneOf ? "one of several shapes" : "any JSON"),
    schema.format
  ]
    .filter(Boolean)
    .join(", ");

/** Return the limits of a value; empty if there are none. @param {Schema} schema */
export function limits(schema) {
  // A minimum length of 1 isn't mentioned, because empty fields aren't sent.
  /** @param {string} name */
  const lower = (name) =>
    name === "minimum" || schema[name] > (name === "minLength" && schema.maxLength === undefined ? 1 : 0)
      ? schema[name]
      : undefined;
  const ranges = RANGES.flatMap(([name, high, unit]) => {
    const low = lower(name);
    return low === undefined && schema[high] === undefined ? [] : range(low, schema[high], unit);
  });
  return [
    ...ranges,
    ...LIMITS.filter(([name]) => schema[name] !== undefined).map(([name, format]) => format(schema[name]))
  ].join(", ");
}

/** Return type, limits, and default of a value. @param {Schema} schema */
export function hint(schema) {
  const preset = schema.default == null || schema.default === "" ? "" : `default ${JSON.stringify(schema.default)}`;
  return [kindOf(schema), limits(schema), preset].filter(Boolean).join(", ");
}

/** Return the only value that a schema allows, or undefined. @param {Schema} schema */
export const onlyValue = (schema) => (schema.enum?.length === 1 ? schema.enum[0] : schema.const);

/** Return the displayed name of an alternative. @param {Schema} schema @param {Schema} root @param {number} index */
export function nameOf(schema, root, index) {
  const found = resolve(schema, root);
  const tag = Object.values(found.properties ?? {})
    .map((part) => onlyValue(resolve(part, root)))
    .find((value) => value !== undefined);
  const reference = typeof schema.$ref === "string" ? schema.$ref.split("/").at(-1) : "";
  return String(found.title ?? (reference || tag || found.format || found.type || `Shape ${index + 1}`));
}
