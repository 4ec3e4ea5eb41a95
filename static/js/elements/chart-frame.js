// What every chart of runs needs of its page: uPlot's style sheet, a new drawing when colours or width change, numbers in words.
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
