// How the curve is drawn: the options of uPlot, the memorising zone, the best point. Used by live-chart.
const finite = (values) => values.filter((v) => v !== null && Number.isFinite(v));

export function options(chart, box) {
  const style = getComputedStyle(chart);
  const colour = (name) => style.getPropertyValue(name).trim();
  const font = `12px ${style.getPropertyValue("--font")}`;
  const axis = { stroke: colour("--c-axis"), font, grid: { stroke: colour("--c-grid"), width: 1 }, ticks: { show: false }, size: 44 };
  const number = (u, values) => values.map((v) => (v === null ? null : v.toLocaleString(document.documentElement.lang)));
  const shown = (name) => !chart.hiddenSeries.has(name);
  const faint = { stroke: `color-mix(in oklch, ${colour("--c-train")} 24%, transparent)`, width: 1, show: shown("train"), spanGaps: true, points: { show: false } };
  const val = { stroke: colour("--c-val"), width: 2, spanGaps: true, show: shown("val"), points: { show: true, size: 6, fill: colour("--surface") } };
  return {
    width: box.clientWidth, height: box.clientHeight, legend: { show: false }, padding: [10, 16, 0, 0],
    cursor: { drag: { x: true, y: false, setScale: false }, points: { size: 8, fill: (u, i) => u.series[i]._stroke ?? colour("--c-train") } },
    scales: { x: { time: false, range: (u, low, high) => chart.zoom ?? [low, high] }, y: { distr: chart.range === "log" ? 3 : 1, range: () => extent(chart) } },
    axes: [{ ...axis, grid: { show: false }, size: 30, values: number }, { ...axis, values: number }],
    series: [{}, faint, { stroke: colour("--c-train"), width: 2, spanGaps: true, show: shown("train"), points: { show: false } }, val,
      { stroke: colour("--c-other"), width: 1.75, dash: [6, 5], spanGaps: true, points: { show: false } }].slice(0, chart.compared ? 5 : 4),
    hooks: {
      drawClear: [(u) => zone(u, chart, colour("--c-zone"), colour("--c-val"), font)],
      draw: [(u) => shown("val") && best(u, chart, colour("--c-val"), font)],
      setCursor: [(u) => chart.read(u.cursor.idx, u.cursor.left)],
      setSelect: [(u) => u.select.width > 6 && chart.zoomTo(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"))],
    },
  };
}

// Focus leaves out the first tenth of the steps, which would rule the range; a log scale gets its own range.
function extent(chart) {
  const [steps, ...all] = chart.data;
  const [from, to] = chart.zoom ?? [steps[0], steps.at(-1)];
  const start = chart.range === "all" ? from : from + (to - from) * 0.1;
  const inside = (values) => values.filter((_, i) => steps[i] >= start && steps[i] <= to);
  const wanted = chart.range === "all" ? all : all.slice(1);
  const values = finite(wanted.flatMap(inside)).concat(finite(all.flat()).slice(-1));
  if (!values.length) return [0, 1];
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (chart.range === "log") return [Math.max(1e-4, low * 0.95), high * 1.05];
  const pad = (high - low) * 0.06 || 0.1;
  return [low - pad, high + pad];
}

function zone(u, chart, fill, ink, font) {
  if (chart.series.zone === null) return;
  const { left, top, width, height } = u.bbox;
  const x = Math.max(left, u.valToPos(chart.series.zone, "x", true));
  if (x >= left + width) return;
  u.ctx.fillStyle = fill;
  u.ctx.fillRect(x, top, left + width - x, height);
  const scale = devicePixelRatio;
  Object.assign(u.ctx, { fillStyle: ink, font: font.replace("12px", `${12 * scale}px`), textAlign: "left" });
  if (left + width - x > 90 * scale) u.ctx.fillText(chart.dataset.zone, x + 8 * scale, top + 16 * scale);
}

function best(u, chart, colour, font) {
  const point = chart.series.best();
  if (!point) return;
  const [x, y] = [u.valToPos(point[0], "x", true), u.valToPos(point[1], "y", true)];
  const { left, top, width, height } = u.bbox, scale = devicePixelRatio;
  if (x < left || x > left + width || y < top || y > top + height) return;
  Object.assign(u.ctx, { fillStyle: colour, strokeStyle: colour, lineWidth: scale, font: font.replace("12px", `600 ${12 * scale}px`), textAlign: x > left + width * 0.85 ? "right" : "center" });
  u.ctx.setLineDash([2 * scale, 3 * scale]);
  u.ctx.beginPath(); u.ctx.moveTo(x, y); u.ctx.lineTo(x, top + height); u.ctx.stroke();
  u.ctx.setLineDash([]);
  u.ctx.beginPath(); u.ctx.arc(x, y, 5 * scale, 0, 7); u.ctx.fill();
  u.ctx.fillText(chart.dataset.best, x, y - 12 * scale);
}
