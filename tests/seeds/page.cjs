// Runs a script as a page would: its first argument, with a document whose elements print what is put into them.
const vm = require("node:vm");

const elements = new Map();
globalThis.document = {
  getElementById(id) {
    if (!elements.has(id)) {
      let content = "";
      elements.set(id, {
        get innerHTML() {
          return content;
        },
        set innerHTML(value) {
          content = value;
          console.log(`#${id}: ${value}`);
        },
      });
    }
    return elements.get(id);
  },
};
vm.runInThisContext(process.argv[2]);
