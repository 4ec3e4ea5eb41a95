// The finder lists every page and project that rail and page know, and can always search all projects; on phones
// "More" shows the same list.
function links() {
  const seen = new Set();
  return [...document.querySelectorAll("#rail a[href], #main a[data-found]")].filter(({ pathname }) => !seen.has(pathname) && seen.add(pathname));
}
function entry(link) {
  const item = document.createElement("a");
  item.className = "menu-item";
  item.href = link.href;
  const name = link.cloneNode(true);
  name.querySelectorAll(".visually-hidden, .stage-fact, .initials").forEach((part) => part.remove());
  item.textContent = name.textContent.trim();
  if (link.hasAttribute("aria-current")) item.setAttribute("aria-current", "true");
  return item;
}
function search(list, wanted) {
  const item = document.createElement("a");
  item.className = "menu-item";
  item.href = `/projects?q=${encodeURIComponent(wanted)}`;
  item.textContent = list.dataset.search.replace("…", wanted);
  return item;
}
function fill(list, wanted = "") {
  const found = links().map(entry).filter((item) => item.textContent.toLowerCase().includes(wanted.toLowerCase()));
  if (wanted.trim() && list.dataset.search) found.push(search(list, wanted.trim()));
  list.replaceChildren(...found);
  window.htmx?.process(list);
}

customElements.define("find-list", class extends HTMLElement {
  connectedCallback() {
    const dialog = this.closest("dialog");
    const input = dialog.querySelector("input");
    dialog.addEventListener("toggle", () => dialog.open && (fill(this), input.select()));
    input.addEventListener("input", () => fill(this, input.value));
    dialog.addEventListener("keydown", (event) => {
      const items = [input, ...this.children];
      const at = items.indexOf(document.activeElement);
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (step) (event.preventDefault(), items[(at + step + items.length) % items.length].focus());
      if (event.key === "Enter" && at === 0 && items[1]) (event.preventDefault(), items[1].click());
    });
  }
});

customElements.define("nav-copy", class extends HTMLElement {
  connectedCallback() {
    const dialog = this.closest("dialog");
    dialog.addEventListener("toggle", () => dialog.open && fill(this));
  }
});
