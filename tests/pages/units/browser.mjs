// Stands for the browser's globals that modules of the pages use while they load. Logic under test uses none of them.

globalThis.addEventListener = () => {};
globalThis.matchMedia = () => ({ addEventListener() {} });
globalThis.document = {
  baseURI: "http://127.0.0.1/inspect",
  body: { append() {} },
  createElement: fake,
  createElementNS: fake,
  getElementById: fake
};

function fake() {
  return {
    className: "",
    textContent: "",
    append(...children) {
      this.textContent += children.join("");
    },
    setAttribute() {},
    addEventListener() {}
  };
}
