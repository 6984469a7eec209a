// Tasks: calls that the server answers with an id and continues in the background. This page polls them, answers their
// questions, and lists the tasks that this tab started.

import { page } from "./host.js";
import { element, fact, icon, store, stored } from "../dom.js";
import { RpcError, wait } from "../mcp/transports.js";
import { badge, drawContent, folded, show } from "./item.js";
import { ask as answerOf } from "./questions.js";
import { address, request } from "./session.js";

export const TASKS = "io.modelcontextprotocol/tasks";
const KEY = "millstream.inspect.tasks";
const KEPT = 100;
const PAUSES_MS = [50, 1_000, 30_000]; // between two polls: minimum, default, maximum
/** @type {Record<string, [string, string]>} */
const LOOKS = {
  working: ["Working", ""],
  input_required: ["Asks you", "warn"],
  completed: ["Done", "good"],
  failed: ["Failed", "bad"],
  cancelled: ["Canceled", "warn"]
};
/** @type {Record<string, [string, string]>} */
const MARKS = {
  completed: ["check", "good"],
  failed: ["close", "bad"],
  cancelled: ["stop", "soft"],
  input_required: ["help", "soft"]
};
const OVER = ["completed", "failed", "cancelled"];

/** @typedef {{server: string, name: string, tool: string, state: Json}} Known `name` is the id of the task */

/** @type {Known[]} */
const known = stored("session", KEY, []);

/** @type {(state: Json) => [string, string]} */
const titleOf = ({ status }) => LOOKS[status] ?? [status, ""];
/** @type {(state: Json) => string} */
const words = ({ status, statusMessage }) => [titleOf({ status })[0], statusMessage].filter(Boolean).join(": ");

/** Return the tasks of the current server, newest first. */
export const knownTasks = () =>
  known
    .filter(({ server }) => server === address())
    .map((task) => Object.assign(task, { title: task.tool, description: words(task.state) }));

/** Return the status icon of a task's row. @param {Known} task */
export function taskMark({ state: { status } }) {
  const [shape, look] = MARKS[status] ?? ["reload", "soft"];
  return element("span", `mark ${look}`, icon(shape));
}

/** @param {Json} state @param {string} tool */
function keep(state, tool) {
  let task = known.find(({ name, server }) => name === state.taskId && server === address());
  if (!task) {
    task = { server: address(), name: state.taskId, tool, state };
    known.unshift(task);
  }
  const news = task.state.status !== state.status || task.state.statusMessage !== state.statusMessage;
  const { result, ...rest } = state;
  task.state = rest;
  known.length = Math.min(known.length, KEPT);
  store("session", KEY, known);
  if (news || known[0] === task) page.tasksChanged();
  return task;
}

/**
 * Poll a task until it ends; `told(state)` is called for each state.
 *
 * @param {Json} state
 * @param {AbortSignal} signal
 * @param {(state: Json) => void} told
 */
async function poll(state, signal, told) {
  const answered = new Set();
  for (;;) {
    told(state);
    if (OVER.includes(state.status)) return state;
    const questions = Object.entries(state.inputRequests ?? {}).filter(([key]) => !answered.has(key));
    if (questions.length) {
      /** @type {Json} */
      const inputResponses = {};
      for (const [key, question] of questions) {
        answered.add(key);
        inputResponses[key] = await answerOf(question.method, question.params ?? {}, signal);
      }
      await request("tasks/update", { taskId: state.taskId, inputResponses }, { signal });
    }
    await wait(Math.min(Math.max(state.pollIntervalMs ?? PAUSES_MS[1], PAUSES_MS[0]), PAUSES_MS[2]), signal);
    state = await request("tasks/get", { taskId: state.taskId }, { signal });
  }
}

/**
 * Wait for the result of a task. If the user cancels, the task is canceled; if they open another item, it continues.
 *
 * @param {Json} begun the task, as the call or `tasks/get` returned it
 * @param {string} tool
 * @param {{progress: (step: Json) => void, place: (node: Node) => void, signal: AbortSignal}} options
 */
export async function follow(begun, tool, { progress, place, signal }) {
  const about = element("p", "row small task");
  place(about);
  /** @param {Json} state */
  const told = (state) => {
    keep(state, tool);
    const [title, look] = titleOf(state);
    about.replaceChildren(
      badge(title, look),
      element("span", "soft", "Task"),
      element("code", { className: "one-line", dir: "ltr" }, state.taskId)
    );
    progress({ message: state.statusMessage ?? "It goes on if you leave this page." });
  };
  let ended;
  try {
    ended = await poll(begun, signal, told);
  } catch (error) {
    if (!signal.aborted || !signal.reason?.byPerson) throw error;
    await request("tasks/cancel", { taskId: begun.taskId });
    ended = await poll(await request("tasks/get", { taskId: begun.taskId }), AbortSignal.timeout(PAUSES_MS[2]), told);
  }
  if (ended.status === "failed") throw new RpcError(ended.error ?? { code: 0, message: "The task failed." });
  if (ended.status === "cancelled") throw new Error("The task was canceled.");
  return ended.result ?? {};
}

/** Show a task, and follow it immediately. @param {Known} task */
export function taskCard(task) {
  const { taskId, createdAt, lastUpdatedAt, ttlMs } = task.state;
  /** @param {string | undefined} text */
  const time = (text) => (text ? new Date(text).toLocaleString() : "–");
  const facts = element(
    "dl",
    "facts",
    fact("Created", time(createdAt)),
    fact("Last change", time(lastUpdatedAt)),
    ttlMs ? fact("Kept until", time(Date.parse(createdAt) + ttlMs)) : null
  );
  return show("tasks", task, null, {
    heading: task.tool,
    sub: taskId,
    parts: [facts],
    verb: "Follow",
    copies: [],
    save: null,
    done: null,
    begins: true,
    request: () => ({ method: "tasks/get", params: { taskId } }),
    send: async (method, params, options) =>
      follow(await request(method, params, { signal: options.signal }), task.tool, options),
    draw: (result) => drawContent(result.content ?? []),
    extra: [folded("Last state", [task.state, "Last state"])]
  });
}
