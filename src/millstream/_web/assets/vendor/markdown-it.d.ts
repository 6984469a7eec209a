// Keeps the checker of `make check` out of the library's minified code.
declare const MarkdownIt: new (options: object) => any;
export default MarkdownIt;
