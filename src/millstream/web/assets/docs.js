// The page of tools: reads openapi.json, draws a form for each operation, runs it. Everything that comes from the
// server is set as text, never as markup.

import { $, element, pretty } from "./dom.js";
import { schemaForm } from "./schema/form.js";
import { resolve } from "./schema/resolve.js";

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
    show(output, element("p", { className: "notice bad" }, `The server didn't answer: ${error.message}`));
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
  const raw = element("pre", { className: "wrap", tabIndex: 0, "aria-label": "Reply" }, result === null ? body : pretty(result));
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
  const fields = schemaForm({ ...schema, components: root.components }, { id });
  const output = element("div", { className: "result stack tight", hidden: true });
  const live = element("div", { role: "status", "aria-label": `Result of ${operation.operationId}` }, output);
  const button = element("button", { className: "primary", type: "submit" }, "Run");
  const copy = element("button", { className: "quiet", type: "button" }, "As curl");
  const form = element("form", { "aria-labelledby": id });
  form.noValidate = true;
  form.append(fields.node, fields.summary, element("div", { className: "row wide" }, button, copy));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const read = fields.read();
    if (read === null) return;
    button.disabled = true;
    button.textContent = "Running…";
    await run(path, read, output);
    button.disabled = false;
    button.textContent = "Run";
  });
  copy.addEventListener("click", () => {
    const read = fields.read();
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
  return element("pre", { tabIndex: 0 }, pretty(schema));
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
  $("server-name").textContent = document.title = root.info.title;
  $("server-version").textContent = root.info.version;
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
    none.replaceChildren(element("strong", {}, shown.length ? "No tool matches" : "No tools yet"), shown.length ? "Try fewer words." : "Register a function with @mcp.tool and reload this page.");
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
  $("failure").textContent = `The list of tools couldn't be loaded. ${error.message}`;
  $("failure").hidden = false;
}
