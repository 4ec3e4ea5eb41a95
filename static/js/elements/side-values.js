// The values of a run's small curves under the pointer, a finger or the arrow keys. Loaded when first asked for.
import { asked, stepped } from "./chart-series.js";

const NS = "http://www.w3.org/2000/svg", FRESH_MS = 2000;

// `box` is the drawing: its points are fetched when it is first read, and again once it has grown.
export function read(box, event) {
  if (box.onpointermove) return;
  const words = box.parentElement.querySelector("[data-range]"), status = document.querySelector("live-chart [data-status]");
  const step = document.querySelector("live-chart th").textContent;
  let points, fetched = -FRESH_MS, last, at;
  const known = () => {
    if (box.dataset.step !== last && performance.now() - fetched > FRESH_MS) {
      [last, fetched] = [box.dataset.step, performance.now()];
      points = asked(box.dataset.values);
    }
    return points;
  };
  const show = async (place) => {
    const { step: steps = [], text } = await known();
    at = place(steps.length - 1);
    if (at === undefined || !steps.length) return;
    words.dataset.range ||= words.textContent;
    words.textContent = `${step} ${steps[at].toLocaleString(document.documentElement.lang)}: ${text[at]}`;
    const x = (at / Math.max(1, steps.length - 1)) * box.viewBox.baseVal.width;
    const line = box.querySelector(".run-side-at") ?? box.appendChild(document.createElementNS(NS, "path"));
    line.setAttribute("class", "run-side-at");
    line.setAttribute("d", `M${x} 0V${box.viewBox.baseVal.height}`);
  };
  const leave = () => {
    box.querySelector(".run-side-at")?.remove();
    if (words.dataset.range) words.textContent = words.dataset.range;
    words.dataset.range = "";
    at = undefined;
  };
  box.onpointerdown = box.onpointermove = ({ clientX }) => {
    const { left, width } = box.getBoundingClientRect();
    show((most) => Math.round(Math.min(1, Math.max(0, (clientX - left) / width)) * most));
  };
  // A finger that has left still wants to be read: its value stays until another place is touched.
  box.onpointerleave = ({ pointerType }) => pointerType === "mouse" && box !== document.activeElement && leave();
  box.onblur = leave;
  box.onkeydown = async (event) => {
    if (event.key === "Escape") return leave();
    if (stepped(event, at, 1) === undefined) return;
    event.preventDefault();
    const from = at;
    await show((most) => stepped(event, from, most));
    status.textContent = `${box.getAttribute("aria-label").split(":")[0]}, ${words.textContent}`;
  };
  // The pointer that had this module loaded may already stand still.
  if (event.type === "pointerover") box.onpointermove(event);
}
