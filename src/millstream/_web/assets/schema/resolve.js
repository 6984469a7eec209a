// What a JSON Schema means at one place: references followed, `null` alternatives taken off, `allOf` put together.

const MAX_STEPS = 20;

/** The schema that a reference of the document leads to. `true` and unknown references are the empty schema. */
export function resolve(schema, root) {
  let found = schema;
  for (let steps = 0; found && typeof found.$ref === "string" && steps < MAX_STEPS; steps += 1) {
    const { $ref, ...beside } = found;
    const target = $ref
      .replace(/^#\/?/, "")
      .split("/")
      .filter(Boolean)
      .reduce((node, part) => node?.[decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~")], root);
    found = target && typeof target === "object" ? { ...target, ...beside } : target;
  }
  return found && typeof found === "object" ? found : {};
}

/** The parts of `allOf` as one schema, as far as an editor needs it. */
function merged(schema, root) {
  if (!schema.allOf) return schema;
  const { allOf, ...own } = schema;
  return allOf.map((part) => merged(resolve(part, root), root)).reduce(
    (whole, part) => ({
      ...part, ...whole,
      ...(whole.properties || part.properties ? { properties: { ...whole.properties, ...part.properties, ...whole.properties } } : {}),
      ...(whole.required || part.required ? { required: [...new Set([...(part.required ?? []), ...(whole.required ?? [])])] } : {}),
    }),
    own,
  );
}

const isNull = (part, root) => {
  const found = resolve(part, root);
  return found.type === "null" || ("const" in found && found.const === null);
};
const isNumber = (type) => type === "integer" || type === "number";

/**
 * A schema as an editor shows it: resolved, and without the alternative `null`, for which a field that is left empty
 * stands. `nullable` says that it was there.
 */
export function present(schema, root) {
  const found = merged(resolve(schema, root), root);
  const parts = found.anyOf ?? found.oneOf;
  if (parts) {
    const left = parts.filter((part) => !isNull(part, root));
    const nullable = found.nullable || left.length < parts.length;
    const rest = { ...found, anyOf: undefined, oneOf: undefined };
    if (left.length === 1) return { ...rest, ...present(left[0], root), ...own(found), nullable };
    // `int | float` is a number to whoever types it.
    if (left.every((part) => isNumber(resolve(part, root).type))) return { ...rest, type: "number", nullable };
    return { ...rest, anyOf: left, nullable };
  }
  if (Array.isArray(found.type)) {
    const types = found.type.filter((type) => type !== "null");
    const nullable = types.length < found.type.length;
    if (types.every(isNumber)) return { ...found, type: types.length ? "number" : "null", nullable };
    if (types.length === 1) return { ...found, type: types[0], nullable };
    return { ...found, type: undefined, anyOf: types.map((type) => ({ type })), nullable };
  }
  if (!found.type && found.properties) return { ...found, type: "object" };
  return found;
}

/** What stands beside the alternatives belongs to the place, not to one of them. */
const own = ({ title, description, default: preset }) => Object.fromEntries(Object.entries({ title, description, default: preset }).filter(([, value]) => value !== undefined));

/** The choices of an enumeration in any of its forms, as `{value, title}`; null where there are none. */
export function options(schema) {
  if (schema.enum) return schema.enum.filter((value) => value !== null || !schema.nullable).map((value, index) => ({ value, title: String(schema.enumNames?.[index] ?? (typeof value === "object" ? JSON.stringify(value) : value)) }));
  const parts = schema.oneOf ?? schema.anyOf;
  if (!parts?.length || !parts.every((part) => part && "const" in part)) return null;
  return parts.map((part) => ({ value: part.const, title: String(part.title ?? part.const) }));
}

const RANGES = [
  ["minimum", "maximum", ""],
  ["minLength", "maxLength", "character"],
  ["minItems", "maxItems", "item"],
];
const LIMITS = [
  ["exclusiveMinimum", (value) => `more than ${value}`],
  ["exclusiveMaximum", (value) => `less than ${value}`],
  ["multipleOf", (value) => `a multiple of ${value}`],
  ["pattern", (value) => `matches ${value}`],
];

function range(low, high, unit) {
  const words = high === undefined ? `at least ${low}` : low === undefined ? `at most ${high}` : low === high ? `exactly ${low}` : `${low} to ${high}`;
  return unit ? `${words} ${unit}${(high ?? low) === 1 ? "" : "s"}` : words;
}

/** The type of a value, as a person is told it. */
export const kindOf = (schema) => [schema.type ?? (options(schema) ? "value" : schema.anyOf || schema.oneOf ? "one of several shapes" : "any JSON"), schema.format].filter(Boolean).join(", ");

/** The limits of a value; empty where there are none. */
export function limits(schema) {
  // That a text isn't empty needs no words: one that's left empty isn't sent.
  const least = (name) => (name === "minimum" || schema[name] > (name === "minLength" && schema.maxLength === undefined ? 1 : 0) ? schema[name] : undefined);
  const lengths = RANGES.map(([low, high, unit]) => [least(low), schema[high], unit]);
  const ranges = lengths.filter(([low, high]) => low !== undefined || high !== undefined).map((each) => range(...each));
  return [...ranges, ...LIMITS.filter(([name]) => schema[name] !== undefined).map(([name, say]) => say(schema[name]))].join(", ");
}

/** What a person is told about a value: type, limits, default. */
export function hint(schema) {
  const preset = schema.default === undefined || schema.default === null || schema.default === "" ? "" : `default ${JSON.stringify(schema.default)}`;
  return [kindOf(schema), limits(schema), preset].filter(Boolean).join(", ");
}

/** The one value that a schema allows, if it's one. */
export const only = (schema) => (schema.enum?.length === 1 ? schema.enum[0] : schema.const);

/** What an alternative is called. */
export function nameOf(schema, root, index) {
  const found = resolve(schema, root);
  const tag = Object.values(found.properties ?? {}).map((part) => only(resolve(part, root))).find((value) => value !== undefined);
  const reference = typeof schema.$ref === "string" ? schema.$ref.split("/").at(-1) : "";
  return String(found.title ?? (reference || tag || found.format || found.type || `Shape ${index + 1}`));
}
