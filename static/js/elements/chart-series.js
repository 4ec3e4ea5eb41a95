// The points of one chart: grows by step, drops steps it has, gives uPlot snapshots that are never changed afterwards.
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
