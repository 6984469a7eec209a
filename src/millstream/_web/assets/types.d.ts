// Types that the pages' scripts share, for the checker of `make check`. No page loads this file.

/** An object in a server's JSON. Its members aren't checked, because servers send any JSON. */
type Json = Record<string, any>;

/** A JSON Schema, as a server sends it. */
type Schema = Json;

/** The steps to a place in a value: names of properties, and indexes of items. */
type Path = Array<string | number>;

/** What `element` accepts as a child. It leaves out null and undefined. */
type Child = Node | string | number | null | undefined;

/** The object that `theme.js`, a classic script, leaves for the other scripts. */
declare var millstreamTheme: { get: () => string; set: (theme: string) => void };
