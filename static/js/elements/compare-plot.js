// How curves lie over one another: the options of uPlot for steps, lines, the names at their ends. Used by compare-chart.
const DASHES = [[6, 5], [6, 5], [2, 4], [12, 5], [12, 4, 2, 4], [4, 2]];

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
    const end = lines[i].findLastIndex((v) => v !== null), scale = devicePixelRatio;
    if (end < 0) return;
    // Lines that end at one place have their names under one another.
    let [x, y] = [u.valToPos(steps[end], "x", true), Math.max(u.bbox.top, u.valToPos(lines[i][end], "y", true))];
    while (placed.some((other) => Math.abs(other.x - x) < 100 * scale && Math.abs(other.y - y) < 13 * scale)) y += 13 * scale;
    placed.push({ x, y });
    Object.assign(u.ctx, { fillStyle: i === first ? main : colour("--c-axis"), font: font.replace("12px", `${12 * scale}px`), textAlign: "left" });
    u.ctx.fillText(key.dataset.name.slice(0, 16), x + 6 * scale, y + 4 * scale);
  });
  return {
    width: box.clientWidth, height: box.clientHeight, legend: { show: false }, padding: [10, 110, 0, 0],
    cursor: { drag: { x: true, y: false } }, scales: { x: { time: false }, y: { range: () => [low - pad, high + pad] } },
    axes: [{ ...axis, grid: { show: false }, size: 30, incrs: whole }, axis],
    series: [{}, ...lines.map((_, i) => ({ spanGaps: true, points: { show: false }, ...look(i) }))],
    hooks: { draw: [names], setCursor: [(u) => u.cursor.idx != null && point(u.cursor.idx)] },
  };
}
