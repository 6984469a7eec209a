// What tools cost a model before it has called one. A token is counted as four characters of the JSON that a model is
// given (name, description and input schema), as `millstream tokens` counts: tokenizers differ by model, and by no more
// than a third for such text.

import { count } from "../dom.js";

const CHARACTERS = 4;
const SAYS = "An estimate: four characters of name, description, and schema per token. Tokenizers differ by up to a third.";

const known = new WeakMap();

/** About how many tokens a tool takes in the context of a model. */
export function costOf(tool) {
  if (!known.has(tool)) {
    const shown = JSON.stringify({ name: tool.name, description: tool.description ?? "", input_schema: tool.inputSchema });
    known.set(tool, Math.ceil([...shown].length / CHARACTERS));
  }
  return known.get(tool);
}

/** About how many tokens all tools and the instructions take. */
export const totalCost = (tools, instructions = "") => tools.reduce((sum, tool) => sum + costOf(tool), 0) + Math.ceil([...instructions].length / CHARACTERS);

/** A cost as a person reads it, and what it is. */
export const saidCost = (tokens) => ({ text: `≈ ${count(tokens)} tokens`, title: SAYS });
