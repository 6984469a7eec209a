// Forms from JSON Schemas: one field for each property, which reads as its value or undefined. What no field can hold
// is written as JSON.

import { element } from "./dom.js";

/** The schema that a reference of the document leads to. */
export function resolve(schema, root) {
  let found = schema;
  for (let steps = 0; found && found.$ref && steps < 20; steps += 1) {
    found = found.$ref
      .slice(2)
      .split("/")
      .reduce((node, part) => node?.[decodeURIComponent(part).replaceAll("~1", "/").replaceAll("~0", "~")], root);
  }
  return found ?? {};
}

/** A schema without the alternative `null`, which a field left empty stands for. */
export function present(schema, root) {
  const found = resolve(schema, root);
  const parts = found.anyOf ?? found.oneOf;
  if (parts) {
    const left = parts.filter((part) => resolve(part, root).type !== "null");
    if (left.length === 1) return { ...found, ...present(left[0], root), anyOf: undefined, oneOf: undefined };
    // `int | float` is a number to whoever types it.
    if (left.every((part) => ["integer", "number"].includes(resolve(part, root).type))) {
      return { ...found, type: "number", anyOf: undefined, oneOf: undefined };
    }
  }
  if (Array.isArray(found.type)) {
    const types = found.type.filter((type) => type !== "null");
    const numbers = types.every((type) => type === "integer" || type === "number");
    return { ...found, type: numbers ? "number" : types.length === 1 ? types[0] : types };
  }
  return found;
}

const LIMITS = [
  ["minimum", (value) => `at least ${value}`],
  ["exclusiveMinimum", (value) => `more than ${value}`],
  ["maximum", (value) => `at most ${value}`],
  ["exclusiveMaximum", (value) => `less than ${value}`],
  ["minLength", (value) => (value ? `at least ${value} characters` : "")],
  ["maxLength", (value) => `at most ${value} characters`],
  ["minItems", (value) => (value ? `at least ${value}` : "")],
  ["maxItems", (value) => `at most ${value}`],
  ["default", (value) => (value === null ? "" : `default ${JSON.stringify(value)}`)],
];

/** What a person is told about a value: type, limits, default. */
function hint(schema, required) {
  const kind = [schema.type ?? (schema.anyOf || schema.oneOf ? "JSON" : "any JSON")].flat().join(" or ");
  const words = [options(schema) ? "one of the list" : schema.format ? `${kind} (${schema.format})` : kind];
  if (schema.type === "array" && options(schema.items ?? {})) words[0] = "any of the list";
  for (const [name, say] of LIMITS) if (schema[name] !== undefined) words.push(say(schema[name]));
  if (!required) words.push("optional");
  return words.filter(Boolean).join(", ");
}

/** The choices of an enumeration in any of its forms, as `{value, title}`; null where there are none. */
function options(schema) {
  if (schema.enum) return schema.enum.map((value, index) => ({ value, title: String(schema.enumNames?.[index] ?? value) }));
  const parts = schema.oneOf ?? schema.anyOf;
  if (!parts?.length || !parts.every((part) => "const" in part)) return null;
  return parts.map((part) => ({ value: part.const, title: String(part.title ?? part.const) }));
}

// Controls: each has a node to show and reads as a value or undefined

function choice(schema, id, required) {
  const all = options(schema);
  const control = element("select", { id, required });
  const free = !required || !all.some((each) => each.value === schema.default);
  if (free) control.append(element("option", { value: "" }, required ? "Choose…" : "–"));
  all.forEach((each, index) => control.append(element("option", { value: String(index), selected: each.value === schema.default }, each.title)));
  return { control, read: () => (control.value === "" ? undefined : all[Number(control.value)].value) };
}

function several(schema, id) {
  const all = options(schema.items);
  const boxes = all.map((each, index) => element("input", { type: "checkbox", id: `${id}-${index}`, checked: (schema.default ?? []).includes(each.value) }));
  const labels = all.map((each, index) => element("label", { className: "check" }, boxes[index], each.title));
  const control = element("div", { id, role: "group", className: "row", tabIndex: -1 }, ...labels);
  return { control, group: true, read: () => all.filter((_, index) => boxes[index].checked).map((each) => each.value) };
}

function numeric(schema, id, required) {
  const integer = schema.type === "integer";
  const control = element("input", {
    id, required, type: "number", step: schema.multipleOf ?? (integer ? 1 : "any"), autocomplete: "off",
    inputMode: integer ? "numeric" : "decimal",
    min: schema.minimum ?? schema.exclusiveMinimum, max: schema.maximum ?? schema.exclusiveMaximum,
  });
  if (typeof schema.default === "number") control.value = schema.default;
  return { control, read: () => (control.value === "" ? undefined : Number(control.value)) };
}

const INPUTS = { email: "email", uri: "url", date: "date" };

function text(schema, id, required) {
  const long = (schema.maxLength ?? 0) > 200;
  const control = element(long ? "textarea" : "input", {
    id, required: required && (schema.minLength ?? 0) > 0, autocomplete: "off",
    maxLength: schema.maxLength, minLength: schema.minLength,
  });
  if (!long) control.type = INPUTS[schema.format] ?? "text";
  if (typeof schema.default === "string") control.value = schema.default;
  return { control, read: () => (control.value === "" && !required ? undefined : control.value) };
}

function json(schema, id, required) {
  const control = element("textarea", { id, required, autocomplete: "off" });
  control.placeholder = schema.type === "array" ? "[]" : schema.type === "object" ? "{}" : "JSON";
  if (schema.default !== undefined && schema.default !== null) control.value = JSON.stringify(schema.default);
  return { control, wide: true, read: () => (control.value.trim() === "" ? undefined : JSON.parse(control.value)) };
}

function maker(schema) {
  if (options(schema)) return choice;
  if (schema.type === "array" && options(schema.items ?? {})) return several;
  return { integer: numeric, number: numeric, string: text }[schema.type] ?? json;
}

/** A labelled field for one property: `{name, node, control, error, read}`. */
export function field(name, schema, required, id) {
  const description = schema.description ? element("span", {}, `${schema.description} `) : "";
  const about = element("span", { className: "hint", id: `${id}-hint` }, description, `(${hint(schema, required)})`);
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  const title = schema.title ?? name;
  if (schema.type === "boolean") {
    const control = element("input", { id, type: "checkbox", checked: schema.default === true });
    control.setAttribute("aria-describedby", `${id}-hint`);
    const node = element("div", { className: "field" }, element("label", { className: "check" }, control, title), about, error);
    return { name, node, control, error, read: () => control.checked };
  }
  const made = maker(schema)(schema, id, required);
  made.control.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  const label = made.group
    ? element("span", { className: "label", id: `${id}-label` }, title)
    : element("label", { htmlFor: id }, title);
  if (made.group) made.control.setAttribute("aria-labelledby", label.id);
  const node = element("div", { className: made.wide ? "field wide" : "field" }, label, made.control, about, error);
  return { ...made, name, node, error };
}

/** The fields of an object schema. */
export function fields(schema, root, id) {
  const found = resolve(schema, root);
  const required = new Set(found.required ?? []);
  const properties = Object.entries(found.properties ?? {});
  return properties.map(([name, part], index) => field(name, present(part, root), required.has(name), `${id}-${index}`));
}

/** Say what is wrong with a field, or that nothing is. */
export function complain(each, message) {
  each.error.textContent = message;
  each.error.hidden = !message;
  if (message) each.control.setAttribute("aria-invalid", "true");
  else each.control.removeAttribute("aria-invalid");
}

/** The values that the fields hold; null when one of them cannot be read, which then says so. */
export function collect(list) {
  const values = {};
  let wrong = null;
  for (const each of list) {
    complain(each, "");
    try {
      const value = each.read();
      if (value !== undefined) values[each.name] = value;
    } catch (error) {
      complain(each, `This isn't JSON: ${error.message}`);
      wrong ??= each.control;
    }
  }
  wrong?.focus();
  return wrong ? null : values;
}
