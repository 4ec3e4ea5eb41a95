// The learning curve: history by JSON, then `metrics` events of the page's stream. Listens before it loads.
import { Series, asked, frame, shown } from "./chart-series.js";
import { options } from "./chart-plot.js";
import { connect } from "./chart-tools.js";
import { Tip } from "./chart-tip.js";

customElements.define("live-chart", class extends HTMLElement {
  async connectedCallback() {
    Object.assign(this, { series: new Series(), data: [[]], zoom: null, range: "focus", strength: 0.6, compared: null, hiddenSeries: new Set(), at: null });
    this.box = this.querySelector(".chart-plot");
    this.listen = ({ detail }) => (this.series.add(JSON.parse(detail.data)), this.draw());
    this.stream = document.getElementById(this.dataset.stream);
    this.stream?.addEventListener("metrics", this.listen);
    this.leave = frame(this, () => this.build());
    this.sides = async (event) => {
      const box = event.target.closest?.("[data-values]");
      if (box) (await import("./side-values.js")).read(box, event);
    };
    for (const name of ["pointerover", "focusin"]) document.addEventListener(name, this.sides);
    const [{ default: uPlot }, history] = await Promise.all([import(this.dataset.uplot), asked(this.dataset.history)]);
    if (!this.isConnected) return;
    this.uPlot = uPlot;
    this.series.add(history);
    connect(this);
    this.draw();
  }
  disconnectedCallback() {
    this.stream?.removeEventListener("metrics", this.listen);
    this.leave?.();
    for (const name of ["pointerover", "focusin"]) document.removeEventListener(name, this.sides);
  }
  build() {
    this.plot?.destroy();
    this.data = this.series.snapshot(this.strength, this.compared);
    this.plot = new this.uPlot(options(this, this.box), this.data, this.box);
    this.dataset.ready = "";
    this.querySelector(".chart-wait")?.remove();
    this.drawn = performance.now();
  }
  // At most one drawing a frame; one a second where the reader wants little motion.
  draw() {
    if (this.waiting || !this.uPlot || this.series.step.length < 2) return;
    const pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? Math.max(0, 1000 - (performance.now() - (this.drawn ?? 0))) : 0;
    this.waiting = true;
    setTimeout(() => requestAnimationFrame(() => {
      this.waiting = false;
      if (!this.isConnected) return;
      if (!this.plot) this.build();
      this.plot.setData((this.data = this.series.snapshot(this.strength, this.compared)));
      this.drawn = performance.now();
      for (const [name, values] of [["train", this.data[2]], ["val", this.data[3]]])
        this.querySelector(`[data-series="${name}"] b`).textContent = this.format(values.findLast((v) => v !== null));
    }), pause);
  }
  format(value) {
    return shown(value);
  }
  zoomTo(from, to) {
    this.zoom = from === undefined ? null : [from, to];
    this.querySelector("[data-reset]").hidden = !this.zoom;
    this.plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.draw();
  }
  toggle(name, show) {
    this.hiddenSeries[show ? "delete" : "add"](name);
    this.build();
  }
  point(index) {
    const left = this.plot.valToPos(this.data[0][index], "x");
    this.plot.setCursor({ left, top: 10 });
    this.read(index, left);
    this.tip.say(index);
  }
  read(index, left = -1) {
    this.at = index;
    this.tip ??= new Tip(this);
    this.tip.show(index, left);
  }
});
