// The values under the pointer or the arrow keys: a small card beside the line, and words for screen readers.
export class Tip {
  constructor(chart) {
    this.chart = chart;
    this.box = Object.assign(document.createElement("div"), { className: "chart-tip", hidden: true });
    chart.box.append(this.box);
  }

  // What stands at one index: the step, then name, label and value of each line.
  values(index) {
    const { chart } = this;
    const label = (name) => chart.querySelector(`[data-series="${name}"]`).firstChild.textContent.trim();
    const near = (values) => values[index] ?? values.slice(0, index + 1).findLast((v) => v !== null);
    const step = `${chart.querySelector("th").textContent} ${chart.data[0][index].toLocaleString(document.documentElement.lang)}`;
    return { step, rows: [["train", 2], ["val", 3]].map(([name, i]) => [name, label(name), chart.format(near(chart.data[i]))]) };
  }

  say(index) {
    const { step, rows } = this.values(index);
    this.chart.querySelector("[data-status]").textContent = [step, ...rows.map(([, label, value]) => `${label} ${value}`)].join(", ");
  }

  show(index, left) {
    this.box.hidden = index === null || index === undefined || left < 0;
    if (this.box.hidden) return;
    const { step, rows } = this.values(index);
    const list = document.createElement("dl");
    for (const [name, label, value] of rows) {
      const term = Object.assign(document.createElement("dt"), { textContent: label });
      term.dataset.series = name;
      list.append(term, Object.assign(document.createElement("dd"), { textContent: value }));
    }
    this.box.replaceChildren(Object.assign(document.createElement("strong"), { textContent: step }), list);
    const room = this.chart.box.clientWidth - this.box.offsetWidth - 8, width = this.box.offsetWidth;
    this.box.style.translate = `${left + 64 < room ? left + 64 : Math.max(0, left - width + 24)}px 0`;
  }
}
