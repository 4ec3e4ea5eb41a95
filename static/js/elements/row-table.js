// The rows table by keyboard: j and k go through the rows, Enter opens one, e edits it, / goes to the search.
const isTyping = (element) => Boolean(element?.closest?.("input, textarea, select, [contenteditable]"));

customElements.define("row-table", class extends HTMLElement {
  connectedCallback() {
    this.listen = (event) => this.press(event);
    document.addEventListener("keydown", this.listen, true);
  }
  disconnectedCallback() {
    document.removeEventListener("keydown", this.listen, true);
  }
  press(event) {
    const { key, ctrlKey, metaKey, altKey, target } = event;
    if (ctrlKey || metaKey || altKey || isTyping(target) || localStorage.getItem("shortcuts-off") === "1") return;
    if (document.querySelector("dialog[open]")) return;
    const links = [...this.querySelectorAll(".rows-link")];
    const at = links.indexOf(document.activeElement);
    if (key === "j" || key === "k") {
      const next = links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + (key === "j" ? 1 : -1)))];
      next?.focus({ preventScroll: true });
      next?.closest("tr").scrollIntoView({ block: "nearest" });
    } else if (key === "e" && at >= 0) {
      const url = new URL(links[at].href);
      url.searchParams.set("edit", "1");
      location.href = url;
    } else if (key === "/") {
      this.querySelector("#rows-search")?.focus();
    } else return;
    event.preventDefault();
    event.stopImmediatePropagation();
  }
});
