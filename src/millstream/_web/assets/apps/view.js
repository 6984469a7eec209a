// An app beside the result of its tool: the HTML of a `ui://` resource in a frame with an opaque origin and the policy
// that the resource declares. The user approves the app's actions here.

import { element, labelOf, makeButton, pretty, save } from "../dom.js";
import { jsonBlock } from "../render/json.js";
import { guard } from "../shell/controls.js";
import { Bridge, MIME } from "./bridge.js";

/** @typedef {import("./bridge.js").Host} Host */

const MAX_HTML = 5 * 1024 * 1024;
const MAX_EVENTS = 50;
const MAX_FILES = 10; // of one download
const MAX_QUESTION = 2_000; // characters
const MAX_SHOWN = 16 * 1024; // characters of an app's data
const HEIGHTS = [80, 900];
const TEARDOWN_MS = 300;
const DOMAIN =
  /^((https?|wss?):\/\/(\*\.)?[A-Za-z0-9.-]{1,253}(:\d{1,5})?|(https?|wss?):\/\/\[[0-9a-fA-F:]+\](:\d{1,5})?)$/;
const ORIGIN = "millstream.gateway/upstream"; // `_meta` of a gateway's items and results
/** @type {Record<string, [string, string]>} */
const KINDS = {
  connectDomains: ["connect", "connects to"],
  resourceDomains: ["resource", "loads from"],
  frameDomains: ["frame", "embeds"],
  baseUriDomains: ["base", "resolves addresses below"]
};

// Default_Ignorable_Code_Point and empty symbols can't be seen, and more than eight marks on a letter cover other lines.
const UNSEEN =
  /[\p{C}\p{Default_Ignorable_Code_Point}\u2800\u{16fe4}\u{1d159}]|(?! )\p{Z}|(?<=[\p{Mn}\p{Me}]{8})[\p{Mn}\p{Me}]/gu;

/** Escape characters that can't be seen, or that change what's seen. @param {string} text */
const visible = (text) => text.replace(UNSEEN, (each) => `\\u{${each.codePointAt(0)?.toString(16)}}`);

/** @type {Set<() => Promise<void>>} close functions */
const openApps = new Set();

/** Return the URI of a tool's app, or "". @param {Json} tool */
export const appOf = (tool) => {
  const uri = tool._meta?.ui?.resourceUri ?? tool._meta?.["ui/resourceUri"];
  return typeof uri === "string" && uri.startsWith("ui://") ? uri : "";
};

/**
 * Return the names of the upstream that an item or a result comes from, and of those behind it; [] for the server's own.
 *
 * @param {Json} item
 */
export const originOf = ({ _meta }) => [_meta?.[ORIGIN] ?? []].flat().map(String);

/** @param {Json} one @param {Json} other */
const haveSameOrigin = (one, other) => JSON.stringify(originOf(one)) === JSON.stringify(originOf(other));

/** Close all apps, after a short notice to each. */
export const closeApps = () => Promise.all([...openApps].map((close) => close()));

/** Return the valid domains that a resource declares. @param {Json | undefined} csp */
function domainsOf(csp) {
  return Object.fromEntries(
    Object.keys(KINDS).map((name) => [
      name,
      [csp?.[name] ?? []]
        .flat()
        .filter((each) => typeof each === "string" && DOMAIN.test(each))
        .slice(0, 20)
    ])
  );
}

const VARIABLES = {
  "--color-background-primary": "--surface",
  "--color-background-secondary": "--sunken",
  "--color-background-tertiary": "--ground",
  "--color-background-info": "--info-soft",
  "--color-background-danger": "--bad-soft",
  "--color-background-success": "--good-soft",
  "--color-background-warning": "--warn-soft",
  "--color-text-primary": "--text",
  "--color-text-secondary": "--text-soft",
  "--color-text-info": "--info",
  "--color-text-danger": "--bad",
  "--color-text-success": "--good",
  "--color-text-warning": "--warn",
  "--color-border-primary": "--line",
  "--color-border-secondary": "--line-strong",
  "--color-ring-primary": "--accent",
  "--font-sans": "--sans",
  "--font-mono": "--mono",
  "--font-text-sm-size": "--type-sm",
  "--font-text-md-size": "--type-md",
  "--border-radius-sm": "--radius-sm",
  "--border-radius-md": "--radius",
  "--border-radius-lg": "--radius-lg",
  "--border-radius-full": "--pill"
};

function themeOf() {
  const style = getComputedStyle(document.documentElement);
  const chosen = document.documentElement.dataset.theme;
  const dark = chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  return {
    theme: dark ? "dark" : "light",
    styles: {
      variables: Object.fromEntries(
        Object.entries(VARIABLES).map(([name, token]) => [name, style.getPropertyValue(token).trim()])
      )
    }
  };
}

/** Return the HTML and metadata of a resource. Throws if it isn't an app. @param {Json} result @param {string} uri */
function htmlOf({ contents = [] }, uri) {
  const found = contents.find((/** @type {Json} */ each) => each.uri === uri) ?? contents[0];
  if (!found) throw new Error(`${uri} is empty.`);
  if ((found.mimeType ?? "").replaceAll(" ", "") !== MIME)
    throw new Error(`${uri} has the type ${found.mimeType ?? "(none)"}. Apps need ${MIME}.`);
  const html =
    found.text ?? new TextDecoder().decode(Uint8Array.from(atob(found.blob ?? ""), (each) => each.charCodeAt(0)));
  if (html.length > MAX_HTML) throw new Error(`${uri} is larger than ${MAX_HTML / 1024 / 1024} MiB.`);
  return { html, meta: found._meta?.ui ?? {} };
}

/** Return the name of a file that an app offers, without a path. @param {Json} item */
const fileName = ({ name, resource, uri }) =>
  String(name ?? (resource?.uri ?? uri ?? "").split(/[?#]/)[0].replace(/^.*\//, ""))
    .replace(/[^\p{L}\p{N}._-]+/gu, "-")
    .replace(/^\.+/, "")
    .slice(-100) || "file";

/** Return the data of a resource's contents, for a file. @param {Json} contents */
const fileData = ({ text, blob }) => text ?? Uint8Array.from(atob(blob ?? ""), (each) => each.charCodeAt(0));

/**
 * Create the card of an app. An app of this page's server may use everything that the server offers. Any other app may use
 * only what comes from its own upstream, and needs consent, whatever the hints of its tools say.
 *
 * @param {Json} tool
 * @param {Json} given arguments of the call
 * @param {Json | null} result null if the user canceled the call
 * @param {{request: (method: string, params: Json, options?: Json) => Promise<Json>, tools: () => Json[], host: string}} server
 *   `host` is the host of another server; "" for this page's server
 */
export function appCard(tool, given, result, { request, tools, host: elsewhere }) {
  const uri = appOf(tool);
  const from = elsewhere || originOf(tool)[0] || ""; // the rest is what that server says
  const own = !from;
  /** @param {Json} item */
  const mayUse = (item) => own || haveSameOrigin(item, tool);
  const status = element("p", "soft small", "Loading…");
  const consents = element("div", "app-asks");
  const events = element("ol", "app-events");
  const fold = element("details", { hidden: true }, element("summary", {}, "What the app did"), events);
  const stage = element("div", "app-stage");
  /** @type {HTMLIFrameElement | null} */
  let frame = null;
  const node = element(
    "section",
    { className: "app stack tight", "aria-label": `App of ${tool.name}` },
    element(
      "div",
      "row",
      element("h3", {}, "App"),
      from ? element("span", { className: "badge one-line", title: `From ${from}` }, from) : "",
      element("code", { className: "one-line grow", dir: "auto" }, uri)
    ),
    status,
    stage,
    consents,
    fold
  );
  const always = new Set();
  /** @type {Bridge | null} */
  let bridge = null;

  /** @param {string} title @param {unknown} [value] */
  const logEvent = (title, value) => {
    fold.hidden = false;
    const text = value === undefined ? "" : pretty(value);
    const shown =
      text.length > MAX_SHOWN
        ? [element("pre", { className: "wrap", tabIndex: 0, "aria-label": title }, `${text.slice(0, MAX_SHOWN)}…`)]
        : text && [jsonBlock(value, title)];
    events.append(element("li", {}, element("strong", {}, title), ...shown));
    if (events.childElementCount > MAX_EVENTS) events.firstElementChild?.remove();
  };

  /**
   * Ask the user for consent. Rejects if they decline. With `lasting`, they can also approve all further ones.
   *
   * @param {string} asked
   * @param {unknown} [value]
   */
  const requestConsent = (asked, value, lasting = true) => {
    const question = visible(asked.slice(0, MAX_QUESTION + 1));
    if (always.has(question)) return Promise.resolve();
    return /** @type {Promise<void>} */ (
      new Promise((resolve, reject) => {
        if (question.length > MAX_QUESTION) throw new Error("This is too long to ask the user.");
        /** @param {string} text @param {string} look @param {() => void} onChoose */
        const choice = (text, look, onChoose) =>
          makeButton(
            look,
            () => {
              card.remove();
              if (!consents.childElementCount) setHeight();
              onChoose();
            },
            text
          );
        const buttons = [
          choice("Approve", "primary", resolve),
          ...(lasting
            ? [
                choice("Always", "", () => {
                  always.add(question);
                  resolve();
                })
              ]
            : []),
          choice("Decline", "quiet", () => reject(new Error("The user declined.")))
        ];
        const card = element(
          "div",
          { className: "notice stack tight", role: "group", "aria-label": question },
          element(
            "p",
            { role: "status", dir: "auto" },
            element("strong", {}, from ? `The app of ${from} asks: ` : "The app asks: "),
            question
          ),
          value === undefined ? null : jsonBlock(value, "What it wants to send"),
          element("div", "row", ...buttons)
        );
        consents.append(card); // below the frame, so the card isn't under a pointer in the frame
        card.scrollIntoView({ block: "nearest" });
        guard(card, buttons);
      })
    );
  };

  let wantedHeight = 0;
  const setHeight = () => {
    if (wantedHeight && frame) frame.style.height = `${wantedHeight}px`;
  };

  /** @param {Json} domains @returns {Host} */
  const host = (domains) => ({
    capabilities: {
      openLinks: {},
      downloadFile: {},
      serverTools: {},
      serverResources: {},
      logging: {},
      sandbox: { permissions: {}, csp: domains }
    },
    context: () => ({
      ...themeOf(),
      toolInfo: { tool },
      displayMode: "inline",
      availableDisplayModes: ["inline"],
      containerDimensions: { width: stage.clientWidth, maxHeight: HEIGHTS[1] },
      locale: navigator.language,
      timeZone: Intl.DateTimeFormat().resolvedOptions().timeZone,
      userAgent: "millstream-inspect",
      platform: "web",
      deviceCapabilities: { touch: navigator.maxTouchPoints > 0, hover: matchMedia("(hover: hover)").matches }
    }),
    tool: (name) => tools().find((each) => each.name === name && mayUse(each)),
    call: async (wanted, values) => {
      const trusted = own && !originOf(wanted).length && wanted.annotations?.readOnlyHint === true;
      if (!trusted) await requestConsent(`Allow it to call ${wanted.name}?`, values);
      logEvent(`Called ${wanted.name}`, values);
      return request("tools/call", { name: wanted.name, arguments: values }, { schema: wanted.inputSchema });
    },
    read: async (wanted) => {
      if (!own) await requestConsent(`Allow it to read ${wanted}?`);
      logEvent(`Read ${wanted}`);
      const found = await request("resources/read", { uri: wanted });
      if (!mayUse(found)) throw new Error(`${wanted} isn't a resource of ${from}.`);
      return found;
    },
    open: async (url) => {
      if (!/^https?:\/\//i.test(url)) throw new Error("This page only opens web addresses.");
      await requestConsent(`Allow it to open ${url}?`, undefined, false);
      window.open(url, "_blank", "noopener,noreferrer");
      logEvent(`Opened ${url}`);
    },
    save: async (items) => {
      if (!items.length || items.length > MAX_FILES) throw new Error(`An app saves 1 to ${MAX_FILES} files at a time.`);
      const names = items.map(fileName);
      await requestConsent(`Allow it to save ${names.join(", ")}?`, undefined, false);
      for (const [index, { type, resource, uri }] of items.entries()) {
        let contents = resource;
        if (type === "resource_link") {
          const found = await request("resources/read", { uri: String(uri) });
          if (!mayUse(found)) throw new Error(`${uri} isn't a resource of ${from}.`);
          contents = found.contents?.[0];
        }
        if (!contents) throw new Error(`${names[index]} has no contents.`);
        save(names[index], fileData(contents), contents.mimeType ?? "application/octet-stream");
        logEvent(`Saved ${names[index]}`);
      }
    },
    say: async (text, role) => {
      logEvent(`Said as ${role}`, text);
    },
    remember: (context) => logEvent("Updated the model's context", context),
    resize: ({ height }) => {
      if (typeof height !== "number" || !Number.isFinite(height)) return;
      wantedHeight = Math.min(Math.max(Math.ceil(height), HEIGHTS[0]), HEIGHTS[1]);
      if (!consents.childElementCount) setHeight(); // otherwise it could move the buttons under the pointer
    },
    log: (level, data) => logEvent(`Logged (${level.slice(0, 20)})`, data),
    dropped: (reason) => logEvent("A message was dropped", reason),
    ready: () => {
      // A model writes one argument after another.
      Object.keys(given).forEach((_, count) => {
        const partial = Object.fromEntries(Object.entries(given).slice(0, count));
        bridge?.notify("ui/notifications/tool-input-partial", { arguments: partial });
      });
      bridge?.notify("ui/notifications/tool-input", { arguments: given });
      if (result) bridge?.notify("ui/notifications/tool-result", result);
      else bridge?.notify("ui/notifications/tool-cancelled", { reason: "The user canceled the call." });
    }
  });

  const updateTheme = () => bridge?.ready && bridge.notify("ui/notifications/host-context-changed", themeOf());
  const scheme = matchMedia("(prefers-color-scheme: dark)");
  const close = async () => {
    openApps.delete(close);
    removeEventListener("millstream-theme", updateTheme);
    scheme.removeEventListener("change", updateTheme);
    if (bridge?.ready && stage.isConnected)
      await bridge.request("ui/resource-teardown", { reason: "The page no longer shows the app." }, TEARDOWN_MS);
    bridge?.close();
    stage.replaceChildren();
  };
  openApps.add(close);
  addEventListener("millstream-theme", updateTheme);
  scheme.addEventListener("change", updateTheme);

  const start = async () => {
    const found = await request("resources/read", { uri });
    if (!haveSameOrigin(found, tool)) throw new Error(`${uri} comes from another server than ${tool.name}.`);
    const { html, meta } = htmlOf(found, uri);
    if (!openApps.has(close)) return;
    const domains = domainsOf(meta.csp);
    const access = Object.entries(KINDS)
      .filter(([name]) => domains[name].length)
      .map(([name, [, verb]]) => `${verb} ${domains[name].join(", ")}`);
    status.textContent = access.length
      ? `In a sandbox. It ${access.join("; ")}.`
      : "In a sandbox that blocks its requests to other servers.";
    const query = new URLSearchParams(
      Object.entries(KINDS).flatMap(([name, [short]]) => domains[name].map((each) => [short, each]))
    );
    const made = element("iframe", {
      className: meta.prefersBorder === false ? "" : "bordered",
      title: `App of ${labelOf(tool)}`,
      sandbox: "allow-scripts",
      referrerPolicy: "no-referrer",
      src: `inspect/app?${query}`
    });
    frame = made;
    bridge = new Bridge(made, host(domains));
    addEventListener("message", function onReady({ source, data }) {
      if (!source || source !== made.contentWindow || data?.ready !== true) return;
      removeEventListener("message", onReady);
      made.contentWindow.postMessage({ html }, "*");
    });
    stage.replaceChildren(made);
  };
  start().catch((problem) => {
    status.textContent = `The app can't be shown. ${problem.message}`;
    status.className = "notice bad";
  });
  return node;
}
