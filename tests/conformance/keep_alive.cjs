// Loaded before the suite: its servers keep idle connections for longer than a machine stands still. Node closes them
// after five seconds, also one on which a request has come meanwhile, and the client can't know whether it was seen.
const http = require("node:http");

const { createServer } = http;

http.createServer = (...given) => {
  const server = createServer(...given);
  server.keepAliveTimeout = Number(process.env.KEEP_ALIVE_MS);
  return server;
};
require("node:module").syncBuiltinESMExports();
