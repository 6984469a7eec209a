// Token cost of tool definitions, estimated like `millstream tokens`: four characters of a definition's JSON (name,
// description, and input schema) per token. Tokenizers differ by up to a third for such text.

import { count } from "../dom.js";

const CHARACTERS = 4;
const SAYS =
  "An estimate: four characters of name, description, and schema per token. Tokenizers differ by up to a third.";

const known = new WeakMap();

/** Estimate the tokens of a tool's definition. @param {Json} tool */
export function costOf(tool) {
  if (!known.has(tool)) {
    const shown = JSON.stringify({
      name: tool.name,
      description: tool.description ?? "",
      input_schema: tool.inputSchema
    });
    known.set(tool, Math.ceil([...shown].length / CHARACTERS));
  }
  return known.get(tool);
}

/** Estimate the tokens of all tools and the instructions. @param {Json[]} tools */
export const totalCost = (tools, instructions = "") =>
  tools.reduce((sum, tool) => sum + costOf(tool), 0) + Math.ceil([...instructions].length / CHARACTERS);

/** Return the text and the title for a cost. @param {number} tokens */
export const saidCost = (tokens) => ({ text: `≈ ${count(tokens)} tokens`, title: SAYS });
