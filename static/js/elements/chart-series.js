// What every chart of runs has: its points, which only grow, and what it needs of its page.
// Grows by step, drops steps it has, gives uPlot snapshots that are never changed afterwards.
export class Series {
  constructor() {
    this.step = [];
    this.train = [];
    this.val = [];
    this.zone = null;
  }

  add({ step = [], loss = [], val = [], zone }) {
    step.forEach((s, i) => this.set("train", s, loss[i]));
    val.forEach(([s, v]) => this.set("val", s, v));
    if (zone !== undefined) this.zone = zone;
  }

  // Nearly every point comes last; a late one is put in its place.
  set(name, step, value) {
    let at = this.step.length;
    while (at > 0 && this.step[at - 1] >= step) at--;
    if (this.step[at] !== step) {
      this.step.splice(at, 0, step);
      this.train.splice(at, 0, null);
      this.val.splice(at, 0, null);
    }
    this[name][at] ??= Number.isFinite(value) ? value : null;
  }

  // A de-biased exponential mean whose window grows with the run, so that it does not lag on short ones.
  smoothed(strength) {
    const window = 1 + strength ** 2 * Math.min(400, this.step.length * 0.08);
    const keep = 1 - 2 / (window + 1);
    let mean = 0, weight = 0;
    return this.train.map((value) => {
      if (value === null) return null;
      mean = keep * mean + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return mean / weight;
    });
  }

  // [steps, raw, smoothed, validation, other's validation or training], all of one length.
  snapshot(strength, other) {
    const data = [this.step.slice(), this.train.slice(), this.smoothed(strength), this.val.slice()];
    if (!other) return data;
    const steps = [...new Set([...this.step, ...other.step])].sort((a, b) => a - b);
    const spread = (from, values) => {
      const at = new Map(from.map((s, i) => [s, values[i]]));
      return steps.map((s) => at.get(s) ?? null);
    };
    const theirs = other.val.some((v) => v !== null) ? other.val : other.smoothed(strength);
    return [steps, ...data.slice(1).map((values) => spread(this.step, values)), spread(other.step, theirs)];
  }

  best() {
    let at = -1;
    this.val.forEach((v, i) => v !== null && (at < 0 || v < this.val[at]) && (at = i));
    return at < 0 ? null : [this.step[at], this.val[at]];
  }
}

// uPlot's style sheet, and a new drawing when colours or width change.
export function frame(chart, rebuild) {
  const sheet = chart.dataset.uplotCss, scheme = matchMedia("(prefers-color-scheme: dark)");
  if (!document.querySelector(`link[href="${sheet}"]`)) document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: sheet }));
  const resized = new ResizeObserver(() => chart.plot?.setSize({ width: chart.box.clientWidth, height: chart.box.clientHeight }));
  const again = () => chart.plot && rebuild();
  addEventListener("theme-changed", again);
  scheme.addEventListener("change", again);
  resized.observe(chart.box);
  return () => {
    removeEventListener("theme-changed", again);
    scheme.removeEventListener("change", again);
    resized.disconnect();
    chart.plot?.destroy();
    chart.plot = null;
  };
}

export const asked = async (address) => {
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  return answer.ok ? answer.json() : {};
};

export const shown = (value) => value == null ? "–" : value.toLocaleString(document.documentElement.lang, { minimumFractionDigits: 3, maximumFractionDigits: 3 });

// The index that a key leads to from `at`, of `last + 1`; undefined for any other key.
export function stepped({ key, shiftKey }, at, last) {
  const by = shiftKey ? 10 : 1;
  const found = { ArrowLeft: (at ?? last + 1) - by, ArrowRight: (at ?? -1) + by, Home: 0, End: last }[key];
  return found === undefined || last < 0 ? undefined : Math.min(last, Math.max(0, found));
}
