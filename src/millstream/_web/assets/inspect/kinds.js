// The kinds of items: tools, resources, templates, prompts, and the server itself. Each kind loads its list, and shows one
// of its items in the detail view.

import { page } from "./host.js";
import { appCard, appOf } from "../apps/view.js";
import { element, facts, labelOf } from "../dom.js";
import { contents } from "../render/content.js";
import { jsonBlock } from "../render/json.js";
import { markdownBlock } from "../render/markdown.js";
import { schemaForm, textField } from "../schema/form.js";
import { copyable } from "../shell/controls.js";
import { bench } from "./bench.js";
import { draft } from "./history.js";
import { eventCard, EVENTS, loadEvents, loadSkills, skillCard, SKILLS } from "./extensions.js";
import { badge, contentNodes, copies, drawContent, folded, show } from "./item.js";
import { savedCalls, savedCard } from "./saved.js";
import { address, connected, request, session } from "./session.js";
import { roots, setRoots } from "./settings.js";
import { TASKS, follow, knownTasks, taskCard } from "./tasks.js";
import { complete, expand, variables } from "./templates.js";
import { costOf, saidCost } from "./tokens.js";

const HINTS = {
  readOnlyHint: ["reads only", "good"],
  destructiveHint: ["may destroy", "warn"],
  idempotentHint: ["idempotent", ""],
  openWorldHint: ["open world", ""]
};
/** @type {Map<string, () => void>} callbacks for updates by URI */
const watched = new Map();

/** Handle an update of a resource. @param {string} uri */
export const updated = (uri) => watched.get(uri)?.();

const completes = () => Boolean(session.server.capabilities?.completions);

/**
 * Create a form of text fields, with completion by the server.
 *
 * @param {Array<{name: string, description?: string, required?: boolean}>} list
 * @param {Json} ref
 */
function textForm(list, ref) {
  const editors = list.map(({ name, description, required }, index) => ({
    name,
    required,
    ...textField(name, { description, required, id: `argument-${index}` })
  }));
  if (completes()) {
    for (const each of editors)
      complete(each, ref, editors, (params, signal) => request("completion/complete", params, { signal }));
  }
  /** @param {boolean} [force] */
  const read = (force) => {
    for (const each of editors) each.clear();
    const missing = force ? [] : editors.filter((each) => each.required && !each.read());
    for (const each of missing) each.complain([], "Required.");
    missing[0]?.control.focus();
    return missing.length
      ? null
      : Object.fromEntries(editors.map((each) => [each.name, each.read()]).filter(([, value]) => value));
  };
  /** @param {Json} values */
  const write = (values) => editors.forEach((each) => each.write(values[each.name]));
  return {
    node: element("div", "fields", ...editors.map((each) => each.node)),
    toolbar: null,
    summary: element("p", { hidden: true }),
    empty: !editors.length,
    read,
    values: () => read(true),
    write
  };
}

/** @param {Json} item @param {Json | null} values */
function tool(item, values) {
  const form = draft("tools", item.name, item.inputSchema, () =>
    schemaForm(item.inputSchema ?? { type: "object" }, { id: "argument" })
  );
  const badges = Object.entries(HINTS)
    .filter(([name]) => item.annotations?.[name] === true)
    .map(([, [text, look]]) => badge(text, look));
  const { text: cost, title: costSays } = saidCost(costOf(item));
  const tokens = element("span", { className: "soft small", title: costSays }, cost);
  /** @type {Array<[unknown, string]>} */
  const schemas = [
    [item.inputSchema, "Schema of the arguments"],
    ...(item.outputSchema ? [/** @type {[unknown, string]} */ ([item.outputSchema, "Schema of the result"])] : [])
  ];
  return show("tools", item, values, {
    heading: item.title ? labelOf(item) : (item.annotations?.title ?? item.name),
    sub: item.title && labelOf(item) !== item.name ? item.name : "",
    about: item.description,
    badges: [...badges, tokens],
    form,
    verb: "Run",
    outputSchema: item.outputSchema,
    request: (given) => ({ method: "tools/call", params: { name: item.name, arguments: given } }),
    send: async (method, params, options) => {
      const result = await request(method, params, { ...options, schema: item.inputSchema });
      return result.resultType === "task" ? follow(result, item.name, options) : result;
    },
    draw: (result) => drawContent(result.content ?? []),
    app: appOf(item)
      ? (given, result) =>
          appCard(item, given, result, {
            request,
            tools: page.tools,
            host: session.via ? new URL(session.via.url).host : ""
          })
      : null,
    extra: [folded("Schemas", ...schemas), folded("Definition", [item, "Definition"])]
  });
}

/**
 * Subscribe to updates of a resource until the signal aborts.
 *
 * @param {Json} params
 * @param {AbortSignal} signal
 * @param {() => void} changed
 */
async function watch({ uri }, signal, changed) {
  watched.set(uri, changed);
  signal.addEventListener("abort", () => watched.delete(uri));
  await (await connected()).watch(uri, signal);
}

/** @param {Json} item @param {Json | null} values */
function resource(item, values) {
  const size = item.size === undefined ? [] : [badge(`${item.size.toLocaleString()} bytes`)];
  return show("resources", item, values, {
    heading: item.title ?? item.name,
    sub: item.uri,
    about: item.description,
    badges: [...(item.mimeType ? [badge(item.mimeType)] : []), ...size],
    verb: "Read",
    request: () => ({ method: "resources/read", params: { uri: item.uri } }),
    watch: session.server.capabilities?.resources?.subscribe ? watch : null,
    draw: (result) => contents(result.contents ?? []),
    extra: item.described === false ? [] : [folded("Definition", [item, "Definition"])]
  });
}

/** @param {Json} item @param {Json | null} values */
function template(item, values) {
  const form = draft("templates", item.uriTemplate, [item.uriTemplate, completes()], () =>
    textForm(
      variables(item.uriTemplate).map((name) => ({ name, required: true })),
      { type: "ref/resource", uri: item.uriTemplate }
    )
  );
  return show("templates", item, values, {
    heading: item.title ?? item.name,
    sub: item.uriTemplate,
    about: item.description,
    badges: item.mimeType ? [badge(item.mimeType)] : [],
    form,
    verb: "Read",
    request: (given) => ({ method: "resources/read", params: { uri: expand(item.uriTemplate, given) } }),
    watch: session.server.capabilities?.resources?.subscribe ? watch : null,
    draw: (result) => contents(result.contents ?? []),
    extra: [folded("Definition", [item, "Definition"])]
  });
}

/** @param {Json} item @param {Json | null} values */
function prompt(item, values) {
  const form = draft("prompts", item.name, [item.arguments, completes()], () =>
    textForm(item.arguments ?? [], { type: "ref/prompt", name: item.name })
  );
  /** @param {Json} message */
  const said = (message) =>
    element(
      "div",
      `content said ${message.role}`,
      element("p", "soft small", message.role),
      ...contentNodes([message.content].flat())
    );
  return show("prompts", item, values, {
    heading: item.title ?? item.name,
    about: item.description,
    form,
    verb: "Get",
    request: (given) => ({ method: "prompts/get", params: { name: item.name, arguments: given } }),
    draw: (result) => [
      ...(result.description ? [element("p", "soft", result.description)] : []),
      ...(result.messages ?? []).map(said)
    ],
    extra: [folded("Definition", [item, "Definition"])]
  });
}

// Server

function about() {
  const { client, server, via } = session;
  if (!client) return [];
  const { name = "", title, version = "", description, websiteUrl } = server.serverInfo ?? {};
  const rows = facts({
    Name: name,
    Version: version,
    Revision: client.revision,
    Session: client.handshake ? client.session || "none" : "not needed",
    Address: address(),
    "Signed in": via?.signed_in ? [via.signed_in.who || "yes", ...via.signed_in.scopes].join(" · ") : "",
    Website: websiteUrl
  });
  const instructions = server.instructions
    ? [element("h3", {}, "Instructions"), markdownBlock(server.instructions)]
    : [];
  const card = element(
    "article",
    { className: "card stack", "aria-label": "About the server" },
    element(
      "header",
      "stack tight",
      element("h2", { dir: "auto" }, title || name || "Server"),
      description ? element("p", "description soft", description) : ""
    ),
    element("dl", { className: "facts", id: "about" }, ...rows),
    ...instructions,
    element("h3", {}, "Capabilities"),
    copyable(jsonBlock(server.capabilities ?? {}, "Capabilities"), "Copy the capabilities")
  );
  return [card];
}

const ROOTS = {
  type: "object",
  properties: {
    roots: {
      type: "array",
      title: "Roots",
      items: {
        type: "object",
        required: ["uri"],
        properties: {
          uri: {
            type: "string",
            format: "uri",
            pattern: "^file://",
            description: "The address of a folder or file, such as file:///home/me/project"
          },
          name: { type: "string" }
        }
      }
    }
  }
};

function rootsCard() {
  const form = schemaForm(ROOTS, { id: "argument" });
  form.write({ roots: roots() });
  return bench({
    heading: "Roots",
    about:
      "Folders and files that you share with the server. If it asks for roots, this page answers with this list, or asks you if the list is empty.",
    form,
    verb: "Save",
    request: (values) => ({ method: "notifications/roots/list_changed", params: values }),
    send: async (method, values) => {
      setRoots(values.roots ?? []);
      const client = await connected();
      if (client.handshake) await client.notify(method);
      return { roots: roots() };
    },
    draw: ({ roots: saved }) => [
      element(
        "p",
        {},
        saved.length
          ? `The server gets ${saved.length === 1 ? "this root" : `these ${saved.length} roots`} when it asks.`
          : "The list is empty, so you're asked each time."
      )
    ]
  });
}

function ping() {
  const method = session.client?.handshake ? "ping" : "server/discover";
  return bench({
    heading: "Ping",
    about: `Check that the server responds, and measure how long it takes. This revision uses ${method}.`,
    verb: "Ping",
    copies: copies(),
    request: () => ({ method, params: {} }),
    send: request,
    draw: () => [element("p", {}, "The server answered.")]
  });
}

const ANY = {
  type: "object",
  required: ["method"],
  properties: {
    method: { type: "string", minLength: 1, default: "tools/list", title: "method" },
    params: { type: "object", default: {}, title: "params" }
  }
};

/** @param {Json} item @param {Json | null} values */
function anything(item, values) {
  const form = draft("server", item.name, null, () => schemaForm(ANY, { id: "argument" }));
  return show("server", item, values, {
    heading: item.name,
    about: "The page adds the metadata, headers, and session that the revision needs.",
    form,
    verb: "Send",
    request: ({ method, params = {} }) => ({ method, params }),
    draw: (result) => [copyable(jsonBlock(result, "Result"), "Copy the result")]
  });
}

export const SERVER = { about: "About", roots: "Roots", ping: "Ping", any: "Any request" };
const SERVER_ITEMS = [
  { name: SERVER.about, description: "Name, version, and capabilities", show: about },
  { name: SERVER.any, description: "A method and its parameters", show: anything },
  { name: SERVER.roots, description: "Folders that you share with the server", show: rootsCard },
  { name: SERVER.ping, description: "Check that the server responds", show: ping }
];

/** @param {string} method @param {string} key */
const list = (method, key) => async () => session.client?.list(method, key) ?? [];

/**
 * All kinds. `needs` is the required capability, and `extension` the required extension.
 *
 * @type {Record<string, {title: string, plural?: string, needs?: string, extension?: string, load: () => Promise<any[]>,
 *   show: (item: any, values: any) => Node[], none?: string, first?: string, example?: string}>}
 */
export const KINDS = {
  tools: {
    title: "Tools",
    needs: "tools",
    load: list("tools/list", "tools"),
    show: tool,
    none: "Register a function with @mcp.tool.",
    first: "A tool is a function that models call. This makes one:",
    example: '@mcp.tool\ndef greet(name: str) -> str:\n    """Say hello to somebody."""\n    return f"Hello, {name}!"'
  },
  resources: {
    title: "Resources",
    needs: "resources",
    load: list("resources/list", "resources"),
    show: resource,
    none: "Register a function with @mcp.resource.",
    first: "A resource is something that clients read. This makes one:",
    example:
      '@mcp.resource("shop://hours")\ndef hours() -> str:\n    """When the shop is open."""\n    return "Nine to five"'
  },
  templates: {
    title: "Templates",
    needs: "resources",
    load: list("resources/templates/list", "resourceTemplates"),
    show: template,
    none: "Register a function with @mcp.resource and a variable in its URI.",
    first: "A template is a resource with variables in its URI. This makes one:",
    example:
      '@mcp.resource("shop://books/{isbn}")\ndef book(isbn: str) -> str:\n    """One book."""\n    return f"The book {isbn}"'
  },
  prompts: {
    title: "Prompts",
    needs: "prompts",
    load: list("prompts/list", "prompts"),
    show: prompt,
    none: "Register a function with @mcp.prompt.",
    first: "A prompt is a text that people start from. This makes one:",
    example:
      '@mcp.prompt\ndef review(code: str) -> str:\n    """Ask for a review."""\n    return f"Review this code:\\n{code}"'
  },
  skills: {
    title: "Skills",
    extension: SKILLS,
    load: loadSkills,
    show: skillCard,
    none: "Offer a folder with the extension Skills.",
    first: "A skill is a folder of instructions for models. This offers some:",
    example: 'from millstream.extensions.skills import Skills\n\nskills = mcp.extend(Skills())\nskills.add("skills")'
  },
  events: {
    title: "Events",
    extension: EVENTS,
    load: loadEvents,
    show: eventCard,
    none: "Declare a class with @events.event."
  },
  tasks: {
    title: "Tasks",
    extension: TASKS,
    load: async () => knownTasks(),
    show: taskCard,
    none: "Tasks that this tab started are listed here. A task begins when the server answers a tool call with one."
  },
  saved: {
    title: "Saved",
    plural: "saved calls",
    load: async () => savedCalls(),
    show: savedCard,
    none: "Run a tool, press “Save call”, and say what its result must contain. “Run all” then checks every saved call."
  },
  server: {
    title: "Server",
    load: async () => SERVER_ITEMS,
    show: (item, values) => item.show(item, values)
  }
};
