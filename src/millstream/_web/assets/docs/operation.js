// One operation: its description and arguments, example code, and a form that runs it. The result is shown beside the code.

import {
  $,
  element,
  fold,
  makeButton,
  onSubmit,
  post,
  pre,
  pretty,
  reveal,
  segments,
  store,
  stored,
  wrapped
} from "../dom.js";
import { colored, jsonBlock } from "../render/json.js";
import { markdownBlock } from "../render/markdown.js";
import { describe } from "../schema/describe.js";
import { schemaForm } from "../schema/form.js";
import { resolve } from "../schema/resolve.js";
import { sample } from "../schema/sample.js";
import { showLost } from "../shell/connection.js";
import { copyable, copyButton } from "../shell/controls.js";
import { LANGUAGES } from "../inspect/exports.js";

const LANGUAGE = "millstream.language";

/** @param {any} result */
function pictures(result) {
  /** @type {any[]} */
  const blocks = Array.isArray(result?.content) ? result.content : [];
  return blocks
    .filter((block) => block?.type === "image" && /^image\/[\w.+-]+$/.test(block.mimeType))
    .map((block, index) =>
      element("img", { src: `data:${block.mimeType};base64,${block.data}`, alt: `Image ${index + 1} of the result` })
    );
}

/**
 * Send the arguments, and draw the response into `output`.
 *
 * @param {string} path
 * @param {Json} values
 * @param {HTMLElement} output
 * @param {() => void} again
 */
async function run(path, values, output, again) {
  const started = performance.now();
  let response, body;
  try {
    response = await post(path, values);
    body = await response.text();
  } catch {
    const retry = makeButton("small", again, "Try again");
    output.replaceChildren(
      element(
        "div",
        "notice bad row",
        element("p", "grow", "The server can't be reached, so nothing was sent. Start it, or check your connection."),
        retry
      )
    );
    showLost("The server can't be reached. This page continues when it's back.");
    return;
  }
  const took = `${(performance.now() - started).toLocaleString(undefined, { maximumFractionDigits: 1 })} ms`;
  let result = null;
  try {
    result = JSON.parse(body);
  } catch {
    // Shown as text.
  }
  const status = element(
    "span",
    `badge ${response.ok ? "good" : "bad"}`,
    `${response.status} ${response.statusText}`.trim()
  );
  const summary = element("p", "row", status, element("span", "soft small", took));
  const detail =
    response.ok || !result?.detail ? [] : [element("p", { className: "notice bad", dir: "auto" }, result.detail)];
  const shown = result === null ? [body] : colored(pretty(result));
  const block = wrapped("Reply", result === null ? "auto" : "ltr", ...shown);
  output.replaceChildren(summary, ...detail, ...pictures(result), copyable(block, "Copy the reply"));
}

/** Create example code in the selected language; `show(values)` updates it. @param {string} url @param {Json} first */
function examples(url, first) {
  const names = Object.keys(LANGUAGES);
  const block = pre("Code");
  let values = first;
  const { bar, mark } = segments("Language", names, (name) => {
    store("local", LANGUAGE, name);
    dispatchEvent(new Event(LANGUAGE));
  });
  const draw = () => {
    const chosen = stored("local", LANGUAGE);
    const name = names.includes(chosen) ? chosen : names[0];
    mark(name);
    block.textContent = LANGUAGES[name](url, values, $("account") !== null);
  };
  draw();
  addEventListener(LANGUAGE, draw); // all opened operations use the same language
  const node = element(
    "section",
    { className: "card stack tight", "aria-label": "Request" },
    element("div", "row", element("h3", "grow", "Request"), bar),
    copyable(block, "Copy the code")
  );
  /** @param {Json} next */
  const show = (next) => {
    values = next;
    draw();
  };
  return { node, show };
}

/** @param {string} title @param {boolean} open @param {...Child} children */
function folded(title, open, ...children) {
  return element(
    "details",
    { className: "card section", open },
    element("summary", {}, element("h3", {}, title)),
    ...children
  );
}

/** @param {Schema} schema @param {string} name */
function raw(schema, name) {
  return fold("JSON Schema", jsonBlock(schema, name));
}

/** @param {Json} operation @param {Json} root */
function problems(operation, root) {
  const rows = Object.entries(operation.responses)
    .filter(([status]) => status !== "200")
    .map(([status, response]) =>
      element("tr", {}, element("td", "number", status), element("td", {}, resolve(response, root).description))
    );
  return element(
    "table",
    {},
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th", { scope: "col", className: "number" }, "Status"),
        element("th", { scope: "col" }, "When")
      )
    ),
    element("tbody", {}, ...rows)
  );
}

/** Return the nodes of an operation. @param {Json} item @param {Json} root */
export function draw({ name, path, operation }, root) {
  const media = operation.requestBody.content["application/json"];
  const schema = resolve(media.schema, root);
  const result = resolve(operation.responses["200"].content["application/json"].schema, root);
  const url = new URL(path, document.baseURI).href;
  const whole = { ...schema, components: root.components };
  const likely = sample(whole) ?? media.example ?? {};
  const code = examples(url, likely);
  const fields = schemaForm(whole, { id: "try" });
  /** Complete the entered values with sample values for required arguments. @param {Json} values */
  const completed = (values) => ({
    ...Object.fromEntries(Object.entries(likely).filter(([each]) => schema.required?.includes(each))),
    ...values
  });
  const output = element(
    "div",
    { className: "stack tight", role: "status", "aria-label": "Result" },
    element("p", "soft small", "Run the tool to see its result here.")
  );
  const button = element("button", { className: "primary", type: "submit" }, "Run");
  const fill = makeButton(
    {
      className: "quiet",
      hidden: fields.empty || !Object.keys(likely).length,
      title: "Fill in the form with valid sample values"
    },
    () => {
      fields.write(likely);
      code.show(likely);
    },
    "Use sample values"
  );
  const none = fields.empty ? element("p", "soft", "This tool takes no arguments.") : "";
  const form = element(
    "form",
    { className: "stack tight", "aria-label": `Try ${name}` },
    fields.toolbar,
    none,
    fields.node,
    fields.summary,
    element("div", "row", button, fill)
  );
  form.noValidate = true;
  const send = async () => {
    const values = fields.read();
    if (values === null) return;
    code.show(values);
    button.disabled = true;
    button.textContent = "Running…";
    await run(path, values, output, send);
    reveal(output.parentElement ?? output);
    button.disabled = false;
    button.textContent = "Run";
  };
  onSubmit(form, send);
  form.addEventListener("input", () => {
    try {
      code.show(completed(fields.values()));
    } catch {
      // Keep the previous code while an input is invalid.
    }
  });
  const link = copyButton(
    () => `${location.href.split("#")[0]}#tool=${encodeURIComponent(name)}`,
    "Copy a link to this tool"
  );
  const title =
    operation.summary !== name && operation.summary !== operation.description.split("\n")[0]
      ? element("p", { className: "soft", dir: "auto" }, operation.summary)
      : null;
  return [
    element(
      "header",
      "stack tight",
      element("div", "row title", element("h2", { id: "operation-title" }, name), link),
      title,
      element("p", "address", element("span", "badge accent", "POST"), element("code", {}, `/${path}`)),
      operation.description ? markdownBlock(operation.description) : null
    ),
    element(
      "div",
      "two",
      element(
        "div",
        "stack",
        folded("Arguments", true, form, raw(schema, "Schema of the arguments")),
        folded(
          "Result",
          false,
          describe(result, root, "Content blocks, or any structured value."),
          raw(result, "Schema of the result")
        ),
        folded(
          "Errors",
          false,
          problems(operation, root),
          element(
            "p",
            "soft small",
            "The ",
            element("a", { href: "#problems-title" }, "overview"),
            " says what to do about each."
          )
        )
      ),
      element(
        "div",
        "stack beside",
        code.node,
        element(
          "section",
          { className: "card stack tight", "aria-label": "Response" },
          element("h3", {}, "Response"),
          output
        )
      )
    )
  ];
}
