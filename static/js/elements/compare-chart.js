// Curves of several runs over one another: one in colour, the others dashed and named where they end.
import { options } from "./compare-plot.js";
import { Series, asked, frame, shown, stepped } from "./chart-series.js";

customElements.define("compare-chart", class extends HTMLElement {
  async connectedCallback() {
    Object.assign(this, { kind: "val", first: 0, at: null, box: this.querySelector(".chart-plot"), keys: [...this.querySelectorAll("[data-run]")] });
    this.leave = frame(this, () => this.build());
    const [{ default: uPlot }, ...all] = await Promise.all([import(this.dataset.uplot), ...this.keys.map((key) => asked(key.dataset.run))]);
    if (!this.isConnected) return;
    this.uPlot = uPlot;
    this.series = all.map((points) => { const one = new Series(); one.add(points); return one; });
    this.querySelector(".segments").hidden = false;
    if (this.series.every((one) => one.val.filter((v) => v !== null).length < 2)) this.kind = "train";
    this.onclick = ({ target }) => {
      const button = target.closest("button");
      if (button?.dataset.kind) this.kind = button.dataset.kind;
      if (button?.dataset.run) this.first = this.keys.indexOf(button);
      if (button) this.build();
    };
    this.box.onkeydown = (event) => {
      const at = stepped(event, this.at, (this.data?.[0].length ?? 0) - 1);
      if (at === undefined) return;
      event.preventDefault();
      this.say(at);
    };
    this.build();
  }
  disconnectedCallback() {
    this.leave?.();
  }
  build() {
    this.querySelectorAll("[data-kind]").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.kind === this.kind)));
    this.keys.forEach((key, i) => key.setAttribute("aria-pressed", String(i === this.first)));
    const steps = [...new Set(this.series.flatMap((one) => one.step))].sort((a, b) => a - b);
    const lines = this.series.map((one) => {
      const values = this.kind === "val" ? one.val : one.smoothed(0.6), at = new Map(one.step.map((s, i) => [s, values[i]]));
      return steps.map((s) => at.get(s) ?? null);
    });
    this.data = [steps, ...lines];
    if (steps.length < 2) return;
    this.plot?.destroy();
    const { box, keys, first, kind } = this, point = (at) => this.values((this.at = at));
    this.plot = new this.uPlot(options({ box, keys, first, kind, style: getComputedStyle(this), point }, steps, lines), this.data, box);
    this.dataset.ready = "";
  }
  values(at) {
    this.keys.forEach((key, i) => (key.querySelector("b").textContent = shown(this.data[i + 1].slice(0, at + 1).findLast((v) => v !== null))));
  }
  say(at) {
    this.plot.setCursor({ left: this.plot.valToPos(this.data[0][at], "x"), top: 10 });
    this.querySelector("[data-status]").textContent = `${this.data[0][at]}: ` + this.keys.map((key) => key.textContent.trim()).join(", ");
  }
});
