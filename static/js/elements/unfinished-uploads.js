// Uploads that began in another tab or browser: the same file, chosen again, goes on where it stopped.
import { fingerprint, uploads, start } from "./uploads.js";

customElements.define("unfinished-uploads", class extends HTMLElement {
  connectedCallback() {
    for (const input of this.querySelectorAll("input[type=file]")) {
      input.closest("label").hidden = false;
      input.onchange = () => this.take(input);
    }
    // What goes on in this tab is shown by the dropzone.
    this.show = () => {
      const here = [...uploads.values()].map(({ upload }) => upload?.url ?? "");
      const rows = [...this.querySelectorAll("[data-url]")];
      for (const row of rows) row.hidden = here.some((url) => url.endsWith(row.dataset.url));
      this.hidden = rows.every((row) => row.hidden);
    };
    addEventListener("uploads-changed", this.show);
    this.show();
  }
  disconnectedCallback() {
    removeEventListener("uploads-changed", this.show);
  }
  async take(input) {
    const { name, size, url, fingerprint: known } = input.closest("[data-url]").dataset;
    const [file] = input.files;
    input.value = "";
    if (!file) return;
    const isMeant = file.name === name && file.size === Number(size);
    const isChanged = isMeant && Boolean(known) && known !== (await fingerprint(file));
    input.closest("[data-url]").querySelector(".tone-bad").hidden = isMeant;
    input.closest("[data-url]").querySelector(".tone-warn").hidden = !isChanged;
    const { endpoint, metadata, csrf, library } = this.dataset;
    if (isMeant) start(file, { endpoint, csrf, library, isChanged, url: isChanged ? null : url, metadata: JSON.parse(metadata) });
  }
});
