// The page's functions, for the modules that it imports. `page.js` sets them.

/**
 * @type {{
 *   jump: (item: {kind: string, name: string, values: Record<string, any> | null}) => void,
 *   redo: () => void,
 *   resend: (method: string, params: Record<string, any>) => void,
 *   reconnect: () => void,
 *   count: (list: string, total: number, look?: string) => void,
 *   tools: () => Array<Record<string, any>>,
 *   tasksChanged: () => void,
 *   savedChanged: (call?: Record<string, any>) => void,
 *   sent: (message: Record<string, any>, how: Record<string, any>) => void,
 *   got: (message: Record<string, any>, how: Record<string, any>) => void,
 *   failed: (message: Record<string, any>, error: Error) => void,
 *   ask: (method: string, params: Record<string, any>, signal: AbortSignal) => Promise<Record<string, any>>,
 *   notified: (method: string, params: Record<string, any>) => void,
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
