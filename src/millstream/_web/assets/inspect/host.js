// The page's functions, for the modules that it imports. `page.js` sets them.

/**
 * @type {{
 *   jump: (item: {kind: string, name: string, values: Json | null}) => void,
 *   redo: () => void,
 *   resend: (method: string, params: Json) => void,
 *   reconnect: () => void,
 *   count: (list: string, total: number, look?: string) => void,
 *   tools: () => Array<Json>,
 *   tasksChanged: () => void,
 *   savedChanged: (call?: Json) => void,
 *   sent: (message: Json, how: Json) => void,
 *   got: (message: Json, how: Json) => void,
 *   failed: (message: Json, error: Error) => void,
 *   ask: (method: string, params: Json, signal?: AbortSignal) => Promise<Json>,
 *   notified: (method: string, params: Json) => void,
 *   state: (text: string, look: string) => void,
 *   ready: (client: object) => Promise<void>,
 *   signIn: (error: Error) => Promise<void>
 * }}
 *
 * `jump` opens an item, and `redo` opens the current one again. `count` shows the number of entries of a list.
 * `savedChanged` gets the changed call, if it's only one. `ready` is awaited before the state becomes connected, and
 * `signIn` is called if another server requires sign-in. The others are those of a `Client`.
 */
export const page = /** @type {any} */ ({});
