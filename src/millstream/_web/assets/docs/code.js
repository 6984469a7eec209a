// Example code for an operation: curl, Python, and TypeScript without dependencies.

import { python } from "../inspect/exports.js";
import { pretty } from "../dom.js";

/** Quote JSON for a shell, on one line if it's short. */
function quoted(values) {
  const line = JSON.stringify(values);
  return (line.length > 48 ? pretty(values) : line).replaceAll("'", "'\\''");
}

export const LANGUAGES = {
  curl: (url, values) => `curl ${url} \\\n  -H 'content-type: application/json' \\\n  -d '${quoted(values)}'\n`,
  Python: (url, values) =>
    `import json\nfrom urllib.request import Request, urlopen\n\narguments = ${python(values)}\nrequest = Request(\n    ${JSON.stringify(url)},\n    json.dumps(arguments).encode(),\n    {"content-type": "application/json"},\n)\nwith urlopen(request) as response:\n    print(json.load(response))\n`,
  TypeScript: (url, values) =>
    `const response = await fetch(${JSON.stringify(url)}, {\n  method: "POST",\n  headers: { "content-type": "application/json" },\n  body: JSON.stringify(${pretty(values).replaceAll("\n", "\n  ")}),\n});\nif (!response.ok) throw new Error((await response.json()).detail);\nconsole.log(await response.json());\n`
};
