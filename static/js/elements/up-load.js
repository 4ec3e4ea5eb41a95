// The dropzone and the tray in the rail: two views of the same uploads (see uploads.js).
import { uploads, start, resume, pause, forget, sentence } from "./uploads.js";

customElements.define("up-load", class extends HTMLElement {
  connectedCallback() {
    this.list = this.querySelector(".files");
    this.input = this.querySelector("input[type=file]");
    this.choose = () => (this.take(this.input.files), (this.input.value = ""));
    this.input.onchange = this.choose;
    this.surface = this.closest(".card") ?? this;
    this.handlers = {
      dragover: (event) => (event.preventDefault(), this.surface.classList.add("is-dragging")),
      dragleave: (event) => !this.surface.contains(event.relatedTarget) && this.surface.classList.remove("is-dragging"),
      drop: (event) => (event.preventDefault(), this.surface.classList.remove("is-dragging"), this.take(event.dataTransfer.files)),
    };
    for (const [name, listener] of Object.entries(this.handlers)) this.surface.addEventListener(name, listener);
    // What has arrived is in the page's own list of files.
    this.show = () => this.list.replaceChildren(...[...uploads.values()].filter(({ state }) => state !== "done").map((entry) => row(entry, "file")));
    addEventListener("uploads-changed", this.show);
    this.show();
    // Whoever was quicker than this script has chosen already.
    this.choose();
  }
  disconnectedCallback() {
    removeEventListener("uploads-changed", this.show);
    for (const [name, listener] of Object.entries(this.handlers)) this.surface.removeEventListener(name, listener);
  }
  take(files) {
    const { endpoint, metadata, csrf, library } = this.dataset;
    for (const file of files) start(file, { endpoint, csrf, library, metadata: JSON.parse(metadata || "{}") });
  }
});

customElements.define("up-load-tray", class extends HTMLElement {
  connectedCallback() {
    this.show = () => {
      const open = [...uploads.values()].filter(({ state }) => state !== "done");
      this.hidden = !open.length;
      this.replaceChildren(...open.map((entry) => row(entry, "tray-item")));
    };
    addEventListener("uploads-changed", this.show);
    this.show();
  }
  disconnectedCallback() {
    removeEventListener("uploads-changed", this.show);
  }
});

function row(entry, className) {
  const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
  const box = make("div", { className });
  const name = make("strong", { className: "clip", textContent: entry.file.name });
  const bar = make("progress", { className: "bar", max: entry.file.size || 1, value: entry.sent, ariaLabel: entry.file.name });
  const tools = make("span", { className: "row row-tight" });
  const button = (text, act) => tools.append(make("button", { type: "button", className: "btn btn-small", textContent: text, onclick: () => act(entry) }));
  if (entry.state === "sending") button("Pause", pause);
  if (entry.upload && ["paused", "failed"].includes(entry.state)) button("Go on", resume);
  if (entry.state !== "done") button("Remove", forget);
  const note = make("small", { textContent: sentence(entry) });
  if (entry.state === "failed") note.className = "tone-bad";
  if (className === "file") box.append(make("span", { className: "grow" }));
  box.append(name, tools, bar, note);
  return box;
}
