// The controls around the curve: legend, smoothing, range, compare, zoom, keyboard, table. Used by live-chart.
import { Series, stepped } from "./chart-series.js";

export function connect(chart) {
  const find = (selector) => chart.querySelector(selector);
  find(".chart-tools").hidden = false;
  chart.onclick = ({ target }) => {
    const button = target.closest("button");
    if (!button) return;
    const { series, range } = button.dataset;
    if (series) chart.toggle(series, press(button));
    if (range) {
      chart.querySelectorAll("[data-range]").forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      chart.range = range;
      chart.build();
    }
    if ("reset" in button.dataset) chart.zoomTo();
    if ("table" in button.dataset) table(chart, button);
  };
  find("[data-smoothing]").oninput = ({ target }) => ((chart.strength = target.value / 100), chart.draw());
  const compare = find("[data-compare]");
  if (compare) compare.onchange = async () => {
    chart.compared = null;
    if (compare.value) (chart.compared = new Series()).add(await (await fetch(compare.value, { headers: { Accept: "application/json" } })).json());
    chart.build();
  };
  const plot = find(".chart-plot");
  plot.ondblclick = () => chart.zoomTo();
  plot.onblur = () => chart.read(null);
  plot.onkeydown = (event) => {
    const at = stepped(event, chart.at, chart.data[0].length - 1);
    if (event.key === "Escape") chart.zoomTo();
    if (at === undefined) return;
    event.preventDefault();
    chart.point(at);
  };
}

function press(button) {
  const pressed = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(pressed));
  return pressed;
}

// The same numbers as a table: every validation, or at most two hundred steps.
function table(chart, button) {
  const box = chart.querySelector(".chart-table");
  box.hidden = !box.hidden;
  button.setAttribute("aria-expanded", String(!box.hidden));
  if (box.hidden) return;
  const { step, train, val } = chart.series, every = Math.ceil(step.length / 200);
  const rows = step.map((_, i) => i).filter((i) => val[i] !== null || i % every === 0);
  box.querySelector("tbody").replaceChildren(...rows.map((i) => {
    const row = document.createElement("tr");
    for (const text of [step[i].toLocaleString(), chart.format(train[i]), chart.format(val[i])]) {
      row.insertCell().textContent = text;
      row.lastChild.className = row.children.length > 1 ? "n" : "";
    }
    return row;
  }));
}
