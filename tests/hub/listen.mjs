// Subscribes with the hub's client in Node.js, and prints what arrives: one line of JSON per event of a subscription.
// Arguments: the URL, the options of `connect`, and for each pattern the options of `subscribe`, as JSON.
// Each line of standard input is a call of a method, `["publish", "news", "Hello"]`, whose result is printed.

import { createInterface } from "node:readline";
import { connect } from "../../src/millstream/_web/assets/hub.js";

const [url, options, patterns] = process.argv.slice(2);
const print = (...line) => console.log(JSON.stringify(line));
const { token, impatient, ...given } = JSON.parse(options);
const tokens = token?.split(" ");
const hub = connect(url, { ...given, ...(tokens && { token: () => (tokens.length > 1 ? tokens.shift() : tokens[0]) }) });

function follow(pattern, { name = pattern, ...rest }) {
  const subscription = hub.subscribe(pattern, rest);
  subscription.on("event", ({ data, event }) => print(name, data, ...(event ? [event] : [])));
  for (const type of ["gap", "ready", "error"]) subscription.on(type, (value) => print(type, value));
  return subscription;
}

hub.on("state", (state) => {
  print("state", state);
  if (impatient && state.state === "waiting") setTimeout(() => hub.retryNow(), 50);
});
const followed = JSON.parse(patterns).map(([pattern, rest = {}]) => follow(pattern, rest));

for await (const line of createInterface({ input: process.stdin })) {
  const [method, ...values] = JSON.parse(line);
  if (method === "follow") followed.push(follow(...values));
  else if (method === "unfollow") followed[values[0]].close();
  else {
    const fail = (error) => print("failed", { name: error.constructor.name, message: error.message });
    try {
      hub[method](...values)?.then?.((value) => print(method, value), fail);
    } catch (error) {
      fail(error);
    }
  }
}
