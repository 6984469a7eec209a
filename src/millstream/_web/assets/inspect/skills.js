// Skills: folders of instructions for models. Each file can be read, and is verified against the manifest.

import { element, facts, labeled } from "../dom.js";
import { contents } from "../render/content.js";
import { badge, folded, show } from "./item.js";
import { request, session } from "./session.js";

export const SKILLS = "io.modelcontextprotocol/skills";

/** Load all skills. Their URIs are unique, their names aren't. */
export async function loadSkills() {
  const found = await session.client.list("skills/list", "skills");
  return found.map((skill) => ({
    ...skill,
    name: skill.uri,
    title: String(skill.frontmatter?.name ?? skill.uri),
    description: String(skill.frontmatter?.description ?? "")
  }));
}

const bytesOf = ({ text, blob }) =>
  blob === undefined ? new TextEncoder().encode(text ?? "") : Uint8Array.from(atob(blob), (each) => each.charCodeAt(0));

/** Return a badge for whether a file matches the manifest; none without a manifest or the Web Crypto API. */
async function verdict(entry, result) {
  const file = (result.contents ?? [])[0];
  if (!entry || !file || !globalThis.crypto?.subtle) return [];
  const bytes = bytesOf(file);
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = [...digest].map((each) => each.toString(16).padStart(2, "0")).join("");
  const same = entry.digest === `sha256:${hex}` && entry.size === bytes.length;
  return [element("p", {}, same ? badge("as in the manifest", "good") : badge("differs from the manifest", "bad"))];
}

export function skillCard(skill, values) {
  const files = Array.isArray(skill.resources) ? skill.resources : [];
  const root = skill.uri.replace(/[^/]*$/, "");
  const all = files.length ? files : [{ uri: skill.uri }];
  const size = ({ size: bytes }) => (bytes === undefined ? "" : ` (${bytes.toLocaleString()} bytes)`);
  const select = element(
    "select",
    { id: "argument-file" },
    ...all.map((file) =>
      element("option", { value: file.uri }, decodeURIComponent(file.uri.replace(root, "")) + size(file))
    )
  );
  select.value = values?.uri ?? skill.uri;
  const field = labeled("File", select);
  const { name, description, ...others } = skill.frontmatter ?? {};
  const rows = facts(Object.fromEntries(Object.entries(others).filter(([, value]) => typeof value !== "object")));
  return show("skills", skill, null, {
    heading: skill.title,
    sub: skill.uri,
    about: skill.description,
    badges: [badge(files.length ? `${files.length} ${files.length === 1 ? "file" : "files"}` : "made at each read")],
    parts: [field, ...(rows.length ? [element("dl", "facts", ...rows)] : [])],
    read: () => ({ uri: select.value }),
    verb: "Read",
    save: null,
    request: (given) => ({ method: "resources/read", params: given }),
    send: async (method, params, options) => {
      const result = await request(method, params, options);
      return {
        ...result,
        checked: await verdict(
          files.find(({ uri }) => uri === params.uri),
          result
        )
      };
    },
    draw: ({ checked, ...result }) => [...checked, ...contents(result.contents ?? [])],
    extra: [
      folded("Definition", [
        { uri: skill.uri, frontmatter: skill.frontmatter, resources: skill.resources },
        "Definition"
      ])
    ]
  });
}
