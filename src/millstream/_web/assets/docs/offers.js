// The server's resources and prompts, as listed by MCP for the caller, and the routes of the hub.

import { element, pre } from "../dom.js";
import { inline } from "../render/markdown.js";
import { copyable } from "../shell/controls.js";

const SHOWN = 200;

const inspector = () => document.querySelector('.bar nav a[href="inspect"]') !== null;
/** @param {string} kind @param {string} wanted @param {Child} shown */
const name = (kind, wanted, shown) =>
  inspector()
    ? element(
        "a",
        { href: `inspect#${kind}=${encodeURIComponent(wanted)}`, title: "Open in the inspector", dir: "auto" },
        shown
      )
    : element("span", { dir: "auto" }, shown);
/** @param {Json} item */
const about = ({ description }) =>
  description ? element("p", { className: "soft words", dir: "auto" }, ...inline(description)) : "";
/** @param {Child[]} head @param {...Child} facts */
const row = (head, ...facts) => element("li", {}, element("p", "property", ...head), ...facts);
/** @param {string} label @param {Json[]} list @param {(item: Json) => Node} draw */
const rows = (label, list, draw) => [
  element("ul", { className: "properties offers", "aria-label": label }, ...list.slice(0, SHOWN).map(draw)),
  ...(list.length > SHOWN ? [element("p", "soft small", `And ${list.length - SHOWN} more.`)] : [])
];
/** @param {string} label @param {string} text */
const code = (label, text) => copyable(pre(label, text), `Copy: ${label}`);

/** Draw resources and templates. @param {Json} lists @param {string} endpoint */
export function drawResources({ resources, templates }, endpoint) {
  const all = [
    ...resources.map((/** @type {Json} */ each) => ({ ...each, kind: "resource", at: each.uri })),
    ...templates.map((/** @type {Json} */ each) => ({ ...each, kind: "template", at: each.uriTemplate }))
  ];
  /** @param {Json} each */
  const draw = (each) =>
    row(
      [
        element("strong", {}, name(each.kind, each.at, each.title ?? each.name)),
        element("code", { dir: "auto" }, each.at),
        each.mimeType ? element("span", "soft small", each.mimeType) : ""
      ],
      about(each)
    );
  const first = all.find((each) => each.kind === "resource")?.at ?? "scheme://name";
  return [
    element(
      "p",
      {},
      "Clients read a resource by its URI. If the URI has ",
      element("code", {}, "{variables}"),
      ", it puts values in their place."
    ),
    ...rows("Resources", all, draw),
    code(
      "Read a resource in Python",
      `import asyncio\n\nfrom millstream import Client\n\n\nasync def main() -> None:\n    async with Client(${JSON.stringify(endpoint)}) as client:\n        for content in await client.read(${JSON.stringify(first)}):\n            print(content)\n\n\nasyncio.run(main())\n`
    )
  ];
}

/** Draw prompts and their arguments. @param {Json} lists */
export function drawPrompts({ prompts }) {
  /** @param {Json} item */
  const argument = ({ name: wanted, required, description }) =>
    element(
      "li",
      {},
      element("code", { dir: "auto" }, wanted),
      required ? element("span", "badge accent", "required") : "",
      description ? element("span", { className: "soft small", dir: "auto" }, description) : ""
    );
  /** @param {Json} each */
  const draw = (each) =>
    row(
      [element("strong", {}, name("prompt", each.name, each.title ?? each.name))],
      about(each),
      each.arguments?.length
        ? element(
            "ul",
            { className: "prompt-arguments", "aria-label": `Arguments of ${each.name}` },
            ...each.arguments.map(argument)
          )
        : ""
    );
  return [
    element("p", {}, "A prompt is a text to start from: the user's application fills it in and sends it to the model."),
    ...rows("Prompts", prompts, draw)
  ];
}

/** Draw the routes of the hub. @param {string} base */
export function drawEvents(base) {
  /** @param {string} path */
  const at = (path) => new URL(path, base).href;
  return [
    element(
      "p",
      {},
      "Every listener of a channel gets its events in order. A client that was disconnected gets what it missed, if it sends the last id that it saw, as ",
      element("code", {}, "hub.js"),
      " does."
    ),
    element(
      "dl",
      "facts",
      ...[
        ["GET /events?channel=NAME", "An event stream. The channel can be repeated."],
        [
          "POST /publish",
          "Publishes an event. Only programs on the server's machine and callers who may publish can use it."
        ],
        ["WebSocket /ws", "Both directions, and MCP with the subprotocol “mcp”."]
      ].map(([term, says]) => element("div", {}, element("dt", {}, element("code", {}, term)), element("dd", {}, says)))
    ),
    code(
      "Listen in a browser",
      `import { connect } from ${JSON.stringify(at("hub.js"))};\n\nconnect().subscribe("news").on("event", ({ data }) => console.log(data));\n`
    ),
    code("Listen in a terminal", `curl -N '${at("events?channel=news")}'\n`),
    code(
      "Publish in a terminal",
      `curl ${at("publish")} \\\n  -H 'content-type: application/json' \\\n  -d '{"channel":"news","data":"Hello"}'\n`
    )
  ];
}
