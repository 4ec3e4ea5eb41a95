// Curves of several runs over one another: one in colour, the others dashed and named where they end.
import { Series } from "./chart-series.js";
const DASHES = [[], [6, 5], [2, 4], [12, 5], [12, 4, 2, 4], [4, 2]];

customElements.define("compare-chart", class extends HTMLElement {
  async connectedCallback() {
    Object.assign(this, { kind: "val", first: 0, at: null, box: this.querySelector(".chart-plot"), keys: [...this.querySelectorAll("[data-run]")] });
    this.rebuild = () => this.uPlot && this.build();
    addEventListener("theme-changed", this.rebuild);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.scheme.addEventListener("change", this.rebuild);
    const sheet = this.dataset.uplotCss;
    if (!document.querySelector(`link[href="${sheet}"]`)) document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: sheet }));
    const ask = async (key) => (await fetch(key.dataset.run, { headers: { Accept: "application/json" } })).json();
    const [{ default: uPlot }, ...all] = await Promise.all([import(this.dataset.uplot), ...this.keys.map(ask)]);
    if (!this.isConnected) return;
    this.uPlot = uPlot;
    this.series = all.map((points) => { const one = new Series(); one.add(points); return one; });
    const segments = this.querySelector(".segments");
    segments.hidden = false;
    if (this.series.every((one) => one.val.filter((v) => v !== null).length < 2)) this.kind = "train";
    this.onclick = ({ target }) => {
      const button = target.closest("button");
      if (button?.dataset.kind) this.kind = button.dataset.kind;
      if (button?.dataset.run) this.first = this.keys.indexOf(button);
      if (button) this.build();
    };
    this.box.onkeydown = (event) => {
      const last = (this.data?.[0].length ?? 0) - 1, by = event.shiftKey ? 10 : 1;
      const at = { ArrowLeft: (this.at ?? last + 1) - by, ArrowRight: (this.at ?? -1) + by, Home: 0, End: last }[event.key];
      if (at === undefined || last < 0) return;
      event.preventDefault();
      this.say(Math.min(last, Math.max(0, at)));
    };
    this.resized = new ResizeObserver(() => this.plot?.setSize({ width: this.box.clientWidth, height: this.box.clientHeight }));
    this.resized.observe(this.box);
    this.build();
  }
  disconnectedCallback() {
    removeEventListener("theme-changed", this.rebuild);
    this.scheme?.removeEventListener("change", this.rebuild);
    this.resized?.disconnect();
    this.plot?.destroy();
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
    const style = getComputedStyle(this), colour = (name) => style.getPropertyValue(name).trim(), font = `12px ${style.getPropertyValue("--font")}`;
    const axis = { stroke: colour("--c-axis"), font, grid: { stroke: colour("--c-grid"), width: 1 }, ticks: { show: false }, size: 44 };
    const later = lines.flatMap((line) => line.filter((v, i) => v !== null && steps[i] >= steps[0] + 0.1 * (steps.at(-1) - steps[0])));
    const low = Math.min(...later), high = Math.max(...later), pad = (high - low) * 0.06 || 0.1;
    const main = colour(this.kind === "val" ? "--c-val" : "--c-train");
    const line = (_, i) => ({ spanGaps: true, points: { show: false }, ...(i === this.first ? { stroke: main, width: 2.5 } : { stroke: colour("--c-other"), width: 1.75, dash: DASHES[i % 6].length ? DASHES[i % 6] : [6, 5] }) });
    const names = (u) => this.keys.forEach((key, i) => {
      const end = lines[i].findLastIndex((v) => v !== null);
      if (end < 0) return;
      Object.assign(u.ctx, { fillStyle: i === this.first ? main : colour("--c-axis"), font: font.replace("12px", `${12 * devicePixelRatio}px`), textAlign: "left" });
      u.ctx.fillText(key.dataset.name.slice(0, 16), u.valToPos(steps[end], "x", true) + 6 * devicePixelRatio, u.valToPos(lines[i][end], "y", true) + 4 * devicePixelRatio);
    });
    this.plot?.destroy();
    this.plot = new this.uPlot({
      width: this.box.clientWidth, height: this.box.clientHeight, legend: { show: false }, padding: [10, 110, 0, 0],
      cursor: { drag: { x: true, y: false } }, scales: { x: { time: false }, y: { range: () => [low - pad, high + pad] } },
      axes: [{ ...axis, grid: { show: false }, size: 30 }, axis], series: [{}, ...lines.map(line)],
      hooks: { draw: [names], setCursor: [(u) => u.cursor.idx != null && (this.at = u.cursor.idx, this.values())] },
    }, this.data, this.box);
    this.dataset.ready = "";
  }
  values() {
    const text = (v) => (v == null ? "–" : v.toLocaleString(document.documentElement.lang, { minimumFractionDigits: 3, maximumFractionDigits: 3 }));
    this.keys.forEach((key, i) => (key.querySelector("b").textContent = text(this.data[i + 1].slice(0, this.at + 1).findLast((v) => v !== null))));
  }
  say(at) {
    this.plot.setCursor({ left: this.plot.valToPos(this.data[0][at], "x"), top: 10 });
    this.querySelector("[data-status]").textContent = `${this.data[0][at]}: ` + this.keys.map((key) => key.textContent.trim()).join(", ");
  }
});
