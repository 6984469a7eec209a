// The page of tools: reads openapi.json, draws a form for each operation, runs it. Everything that comes from the
// server is set as text, never as markup.

const $ = (id) => document.getElementById(id);

/** An element with properties, attributes (names with a dash, and `for`, `role`) and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === false) continue;
    if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

// Schemas

/** The schema that a reference of the document leads to. */
function resolve(schema, root) {
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
function present(schema, root) {
  const found = resolve(schema, root);
  const parts = found.anyOf ?? found.oneOf;
  if (parts) {
    const left = parts.filter((part) => resolve(part, root).type !== "null");
    if (left.length === 1) return { ...found, ...present(left[0], root), anyOf: undefined, oneOf: undefined };
  }
  if (Array.isArray(found.type)) {
    const types = found.type.filter((type) => type !== "null");
    return { ...found, type: types.length === 1 ? types[0] : types };
  }
  return found;
}

/** What a person is told about a value: type, limits, default. */
function hint(schema, required) {
  const words = [];
  const kind = [schema.type ?? (schema.anyOf || schema.oneOf ? "JSON" : "any JSON")].flat().join(" or ");
  words.push(schema.format ? `${kind} (${schema.format})` : kind);
  if (schema.minimum !== undefined) words.push(`at least ${schema.minimum}`);
  if (schema.exclusiveMinimum !== undefined) words.push(`more than ${schema.exclusiveMinimum}`);
  if (schema.maximum !== undefined) words.push(`at most ${schema.maximum}`);
  if (schema.exclusiveMaximum !== undefined) words.push(`less than ${schema.exclusiveMaximum}`);
  if (schema.minLength) words.push(`at least ${schema.minLength} characters`);
  if (schema.maxLength !== undefined) words.push(`at most ${schema.maxLength} characters`);
  if (schema.default !== undefined && schema.default !== null) words.push(`default ${JSON.stringify(schema.default)}`);
  if (!required) words.push("optional");
  return words.join(", ");
}

// Fields: each has a node, and reads as a value or undefined

function choices(schema, id, required) {
  const control = element("select", { id, required });
  if (!required || schema.default === undefined) control.append(element("option", { value: "" }, required ? "Choose…" : "–"));
  schema.enum.forEach((choice, index) => control.append(element("option", { value: String(index) }, String(choice))));
  return { control, read: () => (control.value === "" ? undefined : schema.enum[Number(control.value)]) };
}

function numeric(schema, id, required) {
  const whole = schema.type === "integer";
  const control = element("input", {
    id, required, type: "number", step: schema.multipleOf ?? (whole ? 1 : "any"), autocomplete: "off",
    inputMode: whole ? "numeric" : "decimal",
    min: schema.minimum ?? schema.exclusiveMinimum, max: schema.maximum ?? schema.exclusiveMaximum,
  });
  return { control, read: () => (control.value === "" ? undefined : Number(control.value)) };
}

function text(schema, id, required) {
  const long = (schema.maxLength ?? 0) > 200;
  const control = element(long ? "textarea" : "input", {
    id, required: required && (schema.minLength ?? 0) > 0, autocomplete: "off",
    maxLength: schema.maxLength, minLength: schema.minLength,
  });
  return { control, read: () => (control.value === "" && !required ? undefined : control.value) };
}

function json(schema, id, required) {
  const control = element("textarea", { id, required, autocomplete: "off" });
  control.placeholder = schema.type === "array" ? "[]" : schema.type === "object" ? "{}" : "JSON";
  return { control, wide: true, read: () => (control.value.trim() === "" ? undefined : JSON.parse(control.value)) };
}

function field(name, schema, required, id) {
  const description = schema.description ? element("span", {}, `${schema.description} `) : null;
  const about = element("span", { className: "hint", id: `${id}-hint` }, description ?? "", `(${hint(schema, required)})`);
  const error = element("span", { className: "error", id: `${id}-error`, hidden: true });
  if (schema.type === "boolean") {
    const control = element("input", { id, type: "checkbox", checked: schema.default === true });
    control.setAttribute("aria-describedby", `${id}-hint`);
    const node = element("div", { className: "field" }, element("label", { className: "check" }, control, name), about, error);
    return { name, node, control, error, read: () => control.checked };
  }
  const make = schema.enum ? choices : { integer: numeric, number: numeric, string: text }[schema.type] ?? json;
  const made = make(schema, id, required);
  made.control.setAttribute("aria-describedby", `${id}-hint ${id}-error`);
  const label = element("label", { htmlFor: id }, name);
  const node = element("div", { className: made.wide ? "field wide" : "field" }, label, made.control, about, error);
  return { ...made, name, node, error };
}

/** The arguments that the fields hold; null when one of them cannot be read, which then says so. */
function collect(fields) {
  const values = {};
  let wrong = null;
  for (const each of fields) {
    each.error.hidden = true;
    each.control.removeAttribute("aria-invalid");
    try {
      const value = each.read();
      if (value !== undefined) values[each.name] = value;
    } catch (error) {
      each.error.textContent = `This is not JSON: ${error.message}`;
      each.error.hidden = false;
      each.control.setAttribute("aria-invalid", "true");
      wrong ??= each.control;
    }
  }
  wrong?.focus();
  return wrong ? null : values;
}

// Running

function show(output, ...children) {
  output.replaceChildren(...children);
  output.hidden = false;
}

function pictures(result) {
  const blocks = Array.isArray(result?.content) ? result.content : [];
  return blocks
    .filter((block) => block?.type === "image" && /^image\/[\w.+-]+$/.test(block.mimeType))
    .map((block, index) => element("img", { src: `data:${block.mimeType};base64,${block.data}`, alt: `Image ${index + 1} of the result` }));
}

async function run(path, values, output) {
  const started = performance.now();
  let response, body;
  try {
    response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(values),
    });
    body = await response.text();
  } catch (error) {
    show(output, element("p", { className: "notice bad" }, `The server did not answer: ${error.message}`));
    return;
  }
  const took = `${(performance.now() - started).toLocaleString(undefined, { maximumFractionDigits: 1 })} ms`;
  let result = null;
  try {
    result = JSON.parse(body);
  } catch {
    // Shown as it is.
  }
  const status = element("span", { className: `badge ${response.ok ? "good" : "bad"}` }, `${response.status} ${response.statusText}`.trim());
  const summary = element("p", { className: "row" }, status, element("span", { className: "soft small" }, took));
  const detail = response.ok || !result?.detail ? null : element("p", { className: "notice bad" }, result.detail);
  const raw = element("pre", { className: "wrap", tabIndex: 0, "aria-label": "Reply" }, result === null ? body : JSON.stringify(result, null, 2));
  show(output, summary, ...(detail ? [detail] : []), ...pictures(result), raw);
}

/** The same call for a terminal. */
function command(path, values) {
  const quoted = JSON.stringify(values).replaceAll("'", "'\\''");
  return `curl -X POST ${new URL(path, document.baseURI)} \\\n  -H 'content-type: application/json' \\\n  -d '${quoted}'`;
}

// The page

function card(path, operation, root, number) {
  const id = `tool-${number}`;
  const media = operation.requestBody.content["application/json"];
  const schema = resolve(media.schema, root);
  const required = new Set(schema.required ?? []);
  const names = Object.entries(schema.properties ?? {});
  const fields = names.map(([name, part], index) => field(name, present(part, root), required.has(name), `${id}-${index}`));
  const output = element("div", { className: "result stack tight", hidden: true });
  const live = element("div", { role: "status", "aria-label": `Result of ${operation.operationId}` }, output);
  const button = element("button", { className: "primary", type: "submit" }, "Run");
  const copy = element("button", { className: "quiet", type: "button" }, "As curl");
  const form = element("form", { "aria-labelledby": id });
  form.append(...fields.map((each) => each.node), element("div", { className: "row wide" }, button, copy));
  if (!names.length && schema.additionalProperties !== false) {
    const whole = { ...json(schema, `${id}-whole`, false), name: "", error: element("span", { className: "error", hidden: true }) };
    form.prepend(element("div", { className: "field wide" }, element("label", { htmlFor: `${id}-whole` }, "Arguments"), whole.control, whole.error));
    fields.push(whole);
  }
  const values = () => {
    const read = collect(fields);
    return read && "" in read ? read[""] : read;
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const read = values();
    if (read === null) return;
    button.disabled = true;
    button.textContent = "Running…";
    await run(path, read, output);
    button.disabled = false;
    button.textContent = "Run";
  });
  copy.addEventListener("click", () => {
    const read = values();
    if (read !== null) show(output, element("pre", { className: "wrap", tabIndex: 0, "aria-label": "Command" }, command(path, read)));
  });
  const schemas = element("details", {}, element("summary", {}, "Schemas"));
  schemas.append(element("h3", {}, "Arguments"), block(schema));
  const result = resolve(operation.responses["200"].content["application/json"].schema, root);
  schemas.append(element("h3", {}, "Result"), block(result));
  const title = element("h2", { id }, operation.operationId);
  const header = element("header", {}, title, element("p", { className: "path" }, `POST /${path}`));
  if (operation.description) header.append(element("p", { className: "description" }, operation.description));
  return element("article", { className: "card tool stack", "aria-labelledby": id }, header, form, live, schemas);
}

function block(schema) {
  return element("pre", { tabIndex: 0 }, JSON.stringify(schema, null, 2));
}

function draw(root) {
  const operations = Object.entries(root.paths).map(([path, item]) => [path.slice(1), item.post]);
  const shown = operations.map(([path, operation], number) => {
    const node = card(path, operation, root, number);
    const link = element("a", { href: `#tool-${number}` }, operation.operationId);
    const item = element("li", {}, link);
    const words = `${operation.operationId} ${operation.description}`.toLowerCase();
    return { node, item, words };
  });
  $("name").textContent = document.title = root.info.title;
  $("version").textContent = root.info.version;
  $("version").hidden = false;
  if (root.info.description) $("about").textContent = root.info.description;
  $("index").replaceChildren(...shown.map((each) => each.item));
  $("list").replaceChildren(...shown.map((each) => each.node));
  $("list").removeAttribute("aria-busy");
  const none = element("p", { className: "empty", hidden: true });
  $("list").append(none);
  const filter = () => {
    const words = $("filter").value.toLowerCase().split(/\s+/);
    let visible = 0;
    for (const each of shown) {
      const fits = words.every((word) => each.words.includes(word));
      each.node.hidden = each.item.hidden = !fits;
      visible += fits;
    }
    none.hidden = visible > 0;
    none.replaceChildren(element("strong", {}, shown.length ? "No tool fits" : "No tools yet"), shown.length ? "Try fewer words." : "Register a function with @mcp.tool and reload this page.");
    $("count").textContent = `${visible} of ${shown.length} tools`;
  };
  $("filter").addEventListener("input", filter);
  filter();
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

try {
  const response = await fetch("openapi.json");
  if (!response.ok) throw new Error(`openapi.json: ${response.status}`);
  draw(await response.json());
} catch (error) {
  $("list").removeAttribute("aria-busy");
  $("failure").textContent = `The list of tools could not be loaded. ${error.message}`;
  $("failure").hidden = false;
}
