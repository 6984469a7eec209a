// Counts what 1,000 clients of the hub receive, half of them over event streams, and 40 more whose connections break all
// the time: each has to receive every event once and in order. It ends with status 1 otherwise.
//
//   MILLSTREAM_MAX_CONNECTIONS_PER_ADDRESS=5000 millstream run examples/hub.py --workers 2 --store redis://127.0.0.1
//   node benches/hub_clients.mjs http://127.0.0.1:8000 [SUBSCRIBERS] [FLAKY] [SECONDS]

import { connect as dial, createServer } from "node:net";
import { connect } from "../src/millstream/_web/assets/hub.js";

const [url, ...numbers] = process.argv.slice(2);
const [subscribers = 1_000, flaky = 40, seconds = 30] = numbers.map(Number);
const { hostname, port } = new URL(url);
const channel = `clients.${Date.now()}`;
const count = seconds * 4;
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Start a proxy whose connections last for 0.2 to 2.5 seconds. It accepts none for up to 3 seconds after each. */
async function startProxy() {
  let awayUntil = 0;
  const server = createServer((client) => {
    if (Date.now() < awayUntil) return client.destroy();
    const upstream = dial(port, hostname);
    client.pipe(upstream).pipe(client);
    const cut = () => [client, upstream].forEach((each) => each.destroy());
    for (const each of [client, upstream]) each.on("error", cut).on("close", cut);
    setTimeout(() => {
      awayUntil = Date.now() + Math.random() * 3_000;
      cut();
    }, 200 + Math.random() * 2_300).unref();
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}

const clients = [];
const proxies = [];
for (let number = 0; number < subscribers + flaky; number += 1) {
  let target = url;
  if (number >= subscribers) {
    proxies.push(await startProxy());
    target = proxies.at(-1).url;
  }
  const hub = connect(target, { transport: number % 2 ? "sse" : "websocket" });
  const client = { hub, flaky: number >= subscribers, heard: [], gaps: 0, delays: [], ready: false };
  hub.on("gap", () => (client.gaps += 1));
  hub
    .subscribe(channel)
    .on("ready", () => (client.ready = true))
    .on("event", ({ data }) => {
      const { number: heard, at } = JSON.parse(data);
      client.heard.push(heard);
      client.delays.push(Date.now() - at);
    });
  clients.push(client);
  if (number % 50 === 49) await wait(50);
}
while (!clients.every(({ ready }) => ready)) await wait(100);

const publisher = connect(url);
for (let number = 0; number < count; number += 1) {
  await publisher.publish(channel, { number, at: Date.now() });
  await wait(250);
}
const isDone = ({ heard }) => heard.length >= count;
for (let second = 0; second < 60 && !clients.every(isDone); second += 1) await wait(1_000);

const expected = Array.from({ length: count }, (_, number) => number).join();
const isComplete = ({ heard, gaps }) => heard.join() === expected && gaps === 0;
let failed = false;
for (const kind of [false, true]) {
  const group = clients.filter((each) => each.flaky === kind);
  const complete = group.filter(isComplete).length;
  const delays = group.flatMap((each) => each.delays).sort((one, other) => one - other);
  const at = (part) => delays[Math.floor(delays.length * part)];
  console.log(`${kind ? "flaky" : "steady"}: ${complete} of ${group.length} complete, p50 ${at(0.5)} ms, p99 ${at(0.99)} ms`);
  failed ||= complete < group.length;
}
for (const { hub } of [...clients, { hub: publisher }]) hub.close();
for (const { stop } of proxies) stop();
process.exit(failed ? 1 : 0);
