// "/" or Ctrl/⌘ K finds, "g" then a letter goes, "?" lists them. Off while typing, and where the reader switched them off.
const STORE = "shortcuts-off";
const STAGES = { o: "o", d: "d", t: "t", e: "e", c: "c", m: "m" };
let waiting = 0;

const isTyping = (element) => Boolean(element?.closest?.("input, textarea, select, [contenteditable]"));
const isOff = () => localStorage.getItem(STORE) === "1";

document.addEventListener("keydown", (event) => {
  const { key, ctrlKey, metaKey, altKey, target } = event;
  if ((ctrlKey || metaKey) && key.toLowerCase() === "k") return open("finder", event);
  if (ctrlKey || metaKey || altKey || isTyping(target) || isOff() || document.querySelector("dialog[open]")) return;
  if (key === "/") return open("finder", event);
  if (key === "?") return open("shortcuts", event);
  if (key === "g") return (waiting = Date.now());
  if (Date.now() - waiting < 1500 && STAGES[key]) {
    waiting = 0;
    document.querySelector(`#rail [data-key="${STAGES[key]}"]`)?.click();
  }
});
document.addEventListener("change", ({ target }) => {
  if (target.id === "shortcuts-on") localStorage.setItem(STORE, target.checked ? "0" : "1");
});

function open(id, event) {
  event.preventDefault();
  const box = document.getElementById("shortcuts-on");
  if (box) box.checked = !isOff();
  document.getElementById(id)?.showModal();
}
