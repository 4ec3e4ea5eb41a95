// Rows that people add and remove, text that previews itself, and elements whose module loads when they appear.
customElements.define("repeat-rows", class extends HTMLElement {
  connectedCallback() {
    this.addEventListener("click", (event) => {
      const button = event.target.closest("[data-add], [data-remove]");
      if (!button || !this.contains(button)) return;
      event.preventDefault();
      if (button.hasAttribute("data-add")) this.add();
      else this.remove_row(button.closest("[data-row]"));
    });
  }
  add() {
    const row = this.querySelector("template").content.firstElementChild.cloneNode(true);
    this.count = (this.count ?? 0) + 1;
    for (const part of row.querySelectorAll("[id], [for]")) {
      if (part.id) part.id += `-new-${this.count}`;
      if (part.htmlFor) part.htmlFor += `-new-${this.count}`;
    }
    this.querySelector("[data-rows]").append(row);
    row.querySelector("input:not([type=hidden]), textarea")?.focus();
    this.dispatchEvent(new Event("input", { bubbles: true }));
  }
  remove_row(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    (next?.querySelector("input:not([type=hidden]), textarea") ?? this.querySelector("[data-add]"))?.focus();
    this.dispatchEvent(new Event("input", { bubbles: true }));
  }
});

// What a page reckoned from a form says when the form holds other values by now.
const isOther = (one) => /checkbox|radio/.test(one.type) ? one.checked !== one.defaultChecked
  : one.options ? one.value !== ([...one.options].find((o) => o.defaultSelected) ?? one.options[0])?.value
  : one.type !== "hidden" && one.value !== one.defaultValue;
addEventListener("input", ({ target: { form } }) => document.querySelectorAll(`[data-behind="${form?.id}"]`).forEach((note) => {
  note.hidden = ![...form.querySelectorAll("input, select, textarea")].some(isOther);
}));

const load = () => document.querySelectorAll("[data-module]").forEach((element) => {
  if (!customElements.get(element.localName)) import(element.dataset.module);
});
addEventListener("htmx:after:settle", load);
load();
