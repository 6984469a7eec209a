// Steps to add this server to each client: texts, commands, and links that open a program.

const KEY = "MCP_SERVER_AUTH_KEY";

/** Return the server's name for configurations, in characters that all clients accept. @param {string} name */
export const shortName = (name) =>
  name
    .toLowerCase()
    .replace(/[^a-z0-9_-]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 40) || "server";

/** Quote a word for a shell. @param {string} text */
export const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** @param {string} text */
const base64 = (text) => btoa(String.fromCharCode(...new TextEncoder().encode(text)));

/** Return an argument of `millstream call` for each required property of a tool. @param {Schema | undefined} schema */
function argumentsOf(schema) {
  /** @type {Json} */
  const small = { integer: 1, number: 1, boolean: "true", array: "[]", object: "{}" };
  /** @param {Schema} property */
  const value = (property) => {
    const given =
      property.default ?? property.enum?.[0] ?? property.examples?.[0] ?? small[[property.type].flat()[0]] ?? "hello";
    return typeof given === "object" ? JSON.stringify(given) : String(given);
  };
  const { required, properties } = schema ?? {};
  return (required ?? []).map((/** @type {string} */ name) => quoted(`${name}=${value(properties?.[name] ?? {})}`));
}

/**
 * Return all clients with their steps.
 *
 * @param {{name: string, url: string, keys: boolean, oauth: boolean, near: boolean, tool: Json | null}} server `keys`
 *   and `oauth` are the accepted sign-in methods; `near` is true if only this machine or its network can reach the URL;
 *   `tool` is an example to call
 * @returns {Array<{id: string, title: string, steps: Array<{text: string, code?: string, says?: string, open?: string, label?: string, warn?: boolean}>}>}
 */
export function clients({ name, url, keys, oauth, near, tool }) {
  const short = shortName(name);
  const keyed = keys && !oauth; // a client that can sign in with a browser needs no key
  const header = keyed ? ` --header "Authorization: Bearer $${KEY}"` : "";
  const first = keyed
    ? [
        {
          text: "Put your key in a variable to keep it out of your shell's history.",
          code: `read -rs ${KEY} && export ${KEY}`
        }
      ]
    : [];
  /** @param {string} how */
  const signs = (how) => (oauth ? [{ text: how }] : []);
  /** @param {string} who */
  const distant = (who) =>
    near
      ? [
          {
            text: `${who} servers call yours, so the server needs a public HTTPS address first. Open this page at that address to get its URL.`,
            warn: true
          }
        ]
      : [];

  const cursor = { url, ...(keyed ? { headers: { Authorization: `Bearer \${env:${KEY}}` } } : {}) };
  const code = { type: "http", url, ...(keyed ? { headers: { Authorization: `Bearer \${input:${short}-key}` } } : {}) };
  const inputs = keyed
    ? [{ type: "promptString", id: `${short}-key`, description: `Key for ${name}`, password: true }]
    : [];
  const written = { ...(inputs.length ? { inputs } : {}), servers: { [short]: code } };

  return [
    {
      id: "claude-code",
      title: "Claude Code",
      steps: [
        ...first,
        { text: "Run this in your project.", code: `claude mcp add --transport http ${short} ${quoted(url)}${header}` },
        {
          text: oauth
            ? `Type /mcp in Claude Code, and choose ${short} to sign in.`
            : "Type /mcp in Claude Code to see that it's connected."
        }
      ]
    },
    {
      id: "claude",
      title: "Claude Desktop",
      steps:
        near || keyed
          ? [
              ...first,
              {
                text: "Add the server to Claude's configuration. The command shows the change first.",
                code: `millstream install ${quoted(url)} --client claude${header}`
              },
              { text: "Quit Claude Desktop and start it again." }
            ]
          : [
              {
                text: "In Claude, open Settings, Connectors, Add custom connector. Give it this URL.",
                code: url,
                says: "Copy the URL"
              },
              ...signs("Claude opens this server's page to sign in.")
            ]
    },
    {
      id: "cursor",
      title: "Cursor",
      steps: [
        ...first,
        {
          text: "Cursor asks before it adds the server.",
          open: `cursor://anysphere.cursor-deeplink/mcp/install?name=${encodeURIComponent(short)}&config=${encodeURIComponent(base64(JSON.stringify(cursor)))}`,
          label: "Add to Cursor"
        },
        {
          text: "Or write it into .cursor/mcp.json.",
          code: JSON.stringify({ mcpServers: { [short]: cursor } }, null, 2)
        },
        ...signs("Cursor opens this server's page to sign in.")
      ]
    },
    {
      id: "vscode",
      title: "VS Code",
      steps: [
        {
          text: `VS Code asks before it adds the server.${keyed ? " It asks for the key and keeps it encrypted." : ""}`,
          open: `vscode:mcp/install?${encodeURIComponent(JSON.stringify({ name: short, ...(inputs.length ? { inputs } : {}), ...code }))}`,
          label: "Add to VS Code"
        },
        { text: "Or write it into .vscode/mcp.json.", code: JSON.stringify(written, null, 2) },
        ...signs("VS Code opens this server's page to sign in.")
      ]
    },
    {
      id: "chatgpt",
      title: "ChatGPT",
      steps: [
        ...distant("OpenAI's"),
        { text: "Turn on developer mode: Settings, Apps & Connectors, Advanced settings." },
        { text: "Create a connector with this URL.", code: url, says: "Copy the URL" },
        oauth
          ? { text: "Choose OAuth. ChatGPT registers automatically, and opens this server's page to sign in." }
          : keys
            ? {
                text: "ChatGPT signs in with OAuth only, and this server takes keys. It needs an authorization server.",
                warn: true
              }
            : { text: "Choose no authentication." }
      ]
    },
    {
      id: "terminal",
      title: "Terminal",
      steps: [
        ...first,
        {
          text: "See what the server offers.",
          code: `millstream list ${quoted(url)}${keyed ? ` --auth "$${KEY}"` : oauth ? " --login" : ""}`
        },
        ...(tool
          ? [
              {
                text: "Call a tool.",
                code:
                  [`millstream call ${quoted(url)} ${quoted(tool.name)}`, ...argumentsOf(tool.inputSchema)].join(" ") +
                  (keyed ? ` --auth "$${KEY}"` : oauth ? " --login" : "")
              }
            ]
          : [])
      ]
    }
  ];
}
