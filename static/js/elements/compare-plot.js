// How curves lie over one another: the options of uPlot for steps, lines, the names at their ends. Used by compare-chart.
const DASHES = [[6, 5], [6, 5], [2, 4], [12, 5], [12, 4, 2, 4], [4, 2]];

// The value of a line at a step, also between the steps at which it has one; null before its first and after its last.
function between(steps, line, step) {
  const a = line.findLastIndex((v, i) => v !== null && steps[i] <= step), b = line.findIndex((v, i) => v !== null && steps[i] >= step);
  if (a < 0 || b < 0) return null;
  return a === b ? line[a] : line[a] + (line[b] - line[a]) * (step - steps[a]) / (steps[b] - steps[a]);
}

export function options({ box, keys, first, kind, style, point }, steps, lines) {
  const colour = (name) => style.getPropertyValue(name).trim(), font = `12px ${style.getPropertyValue("--font")}`;
  const whole = Array.from({ length: 24 }, (_, i) => [1, 2, 5][i % 3] * 10 ** Math.floor(i / 3)); // never half a step
  const axis = { stroke: colour("--c-axis"), font, grid: { stroke: colour("--c-grid"), width: 1 }, ticks: { show: false }, size: 44 };
  const main = colour(kind === "val" ? "--c-val" : "--c-train");
  // The first tenth of the steps would rule the range.
  const start = steps[0] + 0.1 * (steps.at(-1) - steps[0]);
  const later = lines.flatMap((line) => line.filter((v, i) => v !== null && steps[i] >= start));
  const low = Math.min(...later), high = Math.max(...later), pad = (high - low) * 0.06 || 0.1;
  const look = (i) => i === first ? { stroke: main, width: 2.5 } : { stroke: colour("--c-other"), width: 1.75, dash: DASHES[i % 6] };
  const names = (u, placed = []) => keys.forEach((key, i) => {
    const end = lines[i].findLastIndex((v) => v !== null), scale = devicePixelRatio, name = key.dataset.name.slice(0, 16);
    if (end < 0) return;
    Object.assign(u.ctx, { fillStyle: i === first ? main : colour("--c-axis"), font: font.replace("12px", `${12 * scale}px`), textAlign: "left" });
    const width = u.ctx.measureText(name).width + 8 * scale;
    const [x, at] = [u.valToPos(steps[end], "x", true), Math.max(u.bbox.top, u.valToPos(lines[i][end], "y", true))];
    // A name stands behind its line's end, or the nearest place above or below that no name and no line runs through.
    const isNamed = (y) => placed.some((other) => Math.abs(other.x - x) < 100 * scale && Math.abs(other.y - y) < 13 * scale);
    const isCrossed = (y) => lines.some((line) => [0.1, 0.3, 0.5, 0.7, 0.9].some((part) => {
      const value = between(steps, line, u.posToVal(x + part * width, "x", true));
      return value !== null && Math.abs(u.valToPos(value, "y", true) - y) < 9 * scale;
    }));
    const places = Array.from({ length: 13 }, (_, n) => at + (n % 2 ? 1 : -1) * Math.ceil(n / 2) * 13 * scale)
      .filter((y) => y > u.bbox.top - scale && y < u.bbox.top + u.bbox.height && !isNamed(y));
    const y = places.find((one) => !isCrossed(one)) ?? places[0] ?? at;
    placed.push({ x, y });
    u.ctx.fillText(name, x + 6 * scale, y + 4 * scale);
  });
  return {
    width: box.clientWidth, height: box.clientHeight, legend: { show: false }, padding: [10, 110, 0, 0],
    cursor: { drag: { x: true, y: false } }, scales: { x: { time: false }, y: { range: () => [low - pad, high + pad] } },
    axes: [{ ...axis, grid: { show: false }, size: 30, incrs: whole }, axis],
    series: [{}, ...lines.map((_, i) => ({ spanGaps: true, points: { show: false }, ...look(i) }))],
    hooks: { draw: [names], setCursor: [(u) => u.cursor.idx != null && point(u.cursor.idx)] },
  };
}
