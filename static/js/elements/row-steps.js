// The page of a row by keyboard: j goes to the next row, k to the one before, e edits.
const isTyping = (element) => Boolean(element?.closest?.("input, textarea, select, [contenteditable]"));

customElements.define("row-steps", class extends HTMLElement {
  connectedCallback() {
    this.listen = ({ key, ctrlKey, metaKey, altKey, target }) => {
      if (ctrlKey || metaKey || altKey || isTyping(target) || localStorage.getItem("shortcuts-off") === "1") return;
      if (document.querySelector("dialog[open]")) return;
      this.querySelector({ j: "[rel=next]", k: "[rel=prev]", e: "[data-edit]" }[key] ?? "none")?.click();
    };
    document.addEventListener("keydown", this.listen);
  }
  disconnectedCallback() {
    document.removeEventListener("keydown", this.listen);
  }
});
