// Elements of a few lines: copy, toast, theme, offline, the rail's copy for phones.
const define = (name, type) => customElements.get(name) ?? customElements.define(name, type);

define("copy-button", class extends HTMLElement {
  connectedCallback() {
    this.onclick = async () => {
      await navigator.clipboard.writeText(this.dataset.text);
      const use = this.querySelector("use");
      const before = use.getAttribute("href");
      use.setAttribute("href", before.replace(/#.*/, "#check"));
      window.gptBuilder.announce("Copied");
      setTimeout(() => use.setAttribute("href", before), 1600);
    };
  }
});

define("toast-message", class extends HTMLElement {
  connectedCallback() {
    this.onclick = ({ target }) => target.closest("[data-dismiss]") && this.remove();
    this.onpointerenter = () => clearTimeout(this.timer);
    this.onpointerleave = () => this.count();
    this.onfocusin = () => clearTimeout(this.timer);
    this.onfocusout = () => this.count();
    this.onsubmit = () => setTimeout(() => this.remove());
    this.count();
  }
  count() {
    clearTimeout(this.timer);
    // What can be undone waits for people who read slowly, or come by keyboard.
    const wait = this.querySelector("form") ? 60000 : 6000;
    if (this.dataset.tone !== "bad") this.timer = setTimeout(() => this.remove(), wait);
  }
  disconnectedCallback() {
    clearTimeout(this.timer);
  }
});

define("theme-switch", class extends HTMLElement {
  connectedCallback() {
    this.onsubmit = async (event) => {
      event.preventDefault();
      const { value } = event.submitter;
      document.documentElement.dataset.theme = value;
      this.querySelectorAll("button").forEach((b) => b.toggleAttribute("aria-current", b === event.submitter));
      this.querySelector("details").open = false;
      dispatchEvent(new CustomEvent("theme-changed"));
      const body = new URLSearchParams(new FormData(event.target, event.submitter));
      await fetch(event.target.getAttribute("action"), { method: "POST", body, redirect: "manual" });
    };
  }
});

define("offline-strip", class extends HTMLElement {
  connectedCallback() {
    this.show = () => (this.hidden = navigator.onLine);
    addEventListener("online", this.show);
    addEventListener("offline", this.show);
    this.show();
  }
  disconnectedCallback() {
    removeEventListener("online", this.show);
    removeEventListener("offline", this.show);
  }
});
