// Answer queries with the search of the site itself: node search.mjs SITE, with a JSON list of queries on standard input.
// The search is a web worker; here, its messages are function calls.

import { readFileSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { runInThisContext } from "node:vm";

const site = process.argv[2];
const workers = join(site, "assets/javascripts/workers");
const [worker] = readdirSync(workers).filter((name) => /^search\..*\.js$/.test(name));
let handle;
let reply;
globalThis.self = globalThis;
globalThis.addEventListener = (_, handler) => (handle = handler);
globalThis.postMessage = (message) => reply(message);
runInThisContext(readFileSync(join(workers, worker), "utf-8"));

function ask(message) {
  return new Promise((resolve) => {
    reply = resolve;
    handle({ data: message });
  });
}

const [SETUP, QUERY] = [0, 2];
const { config, docs } = JSON.parse(readFileSync(join(site, "search/search_index.json"), "utf-8"));
await ask({ type: SETUP, data: { config, docs, options: { suggest: true } } });
const found = {};
for (const query of JSON.parse(readFileSync(0, "utf-8"))) {
  const { data } = await ask({ type: QUERY, data: query });
  found[query] = data.items.map((sections) => sections[0].location.split("#")[0]);
}
process.stdout.write(JSON.stringify(found));
