// The official TypeScript SDK as a peer: `sdk_typescript.mjs (http|stdio) PORT`.
// `createMcpHandler` serves 2026-07-28 and, without sessions, the handshake revisions; it makes a server for each request.
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The packages are installed below .bench/, where a script of this folder would not look.
const require = createRequire(`${process.env.BENCH_NODE}/package.json`);
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const { McpServer, createMcpHandler } = await load('@modelcontextprotocol/server');
const { z } = await load('zod');

const tools = Number(process.env.BENCH_TOOLS ?? '1');
const inputSchema = z.object({ a: z.number().int(), b: z.number().int() });
const outputSchema = z.object({ result: z.number().int() });

function build() {
  const server = new McpServer({ name: 'bench', version: '1' });
  for (let number = 0; number < tools; number++) {
    const name = number === 0 ? 'add' : `add_${number}`;
    const description = number === 0 ? 'Add two numbers.' : `Add two numbers and ${number}.`;
    server.registerTool(name, { description, inputSchema, outputSchema }, async ({ a, b }) => {
      const result = a + b + number;
      return { content: [{ type: 'text', text: String(result) }], structuredContent: { result } };
    });
  }
  return server;
}

if (process.argv[2] === 'stdio') {
  const { serveStdio } = await load('@modelcontextprotocol/server/stdio');
  serveStdio(build);
} else {
  const { toNodeHandler } = await load('@modelcontextprotocol/node');
  const handler = toNodeHandler(createMcpHandler(build, { responseMode: 'json' }));
  createServer(handler).listen(Number(process.argv[3]), '127.0.0.1');
}
