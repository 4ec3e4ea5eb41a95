// Says in a word what a slider's place means, as it moves.
customElements.define("range-word", class extends HTMLElement {
  connectedCallback() {
    this.range = document.getElementById(this.dataset.for);
    if (!this.range) return setTimeout(() => this.isConnected && this.connectedCallback());
    this.oninput = () => this.say();
    this.range.addEventListener("input", this.oninput);
  }
  disconnectedCallback() {
    this.range?.removeEventListener("input", this.oninput);
  }
  say() {
    const words = this.dataset.words.split("|");
    const { value, min, max } = this.range;
    const place = Math.floor((words.length * (value - min)) / (max - min));
    const output = this.querySelector("output");
    if (output) output.textContent = words[Math.min(place, words.length - 1)];
  }
});
