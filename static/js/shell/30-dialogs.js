// Buttons with command/commandfor where the browser does not know them yet; a click on the backdrop closes.
if (!("commandForElement" in HTMLButtonElement.prototype)) {
  document.addEventListener("click", ({ target }) => {
    const button = target.closest?.("button[commandfor]");
    const dialog = button && document.getElementById(button.getAttribute("commandfor"));
    if (!dialog) return;
    if (button.getAttribute("command") === "show-modal") dialog.showModal();
    else if (button.getAttribute("command") === "close") dialog.close();
  });
}
document.addEventListener("click", ({ target, clientX, clientY }) => {
  if (target.tagName === "DIALOG" && target.open) {
    const box = target.getBoundingClientRect();
    const isInside = clientX >= box.left && clientX <= box.right && clientY >= box.top && clientY <= box.bottom;
    if (!isInside) target.close();
  }
  // Menus made of <details> close when the click goes elsewhere, or opens a dialog, which then gives the focus back to them.
  document.querySelectorAll("details.menu[open], details.switcher[open]").forEach((menu) => {
    const isLeft = menu.contains(target) && target.closest("[commandfor]");
    if (isLeft) menu.querySelector("summary").focus();
    if (isLeft || !menu.contains(target)) menu.open = false;
  });
});
document.addEventListener("keydown", ({ key }) => {
  if (key !== "Escape") return;
  document.querySelectorAll("details.menu[open], details.switcher[open]").forEach((menu) => {
    menu.open = false;
    menu.querySelector("summary").focus();
  });
});
// A dialog that the server sent open, with what was wrong in it, stands before the page like one that was opened here.
const lift = () => document.querySelectorAll("dialog[open]:not(:modal)").forEach((dialog) => {
  dialog.close();
  dialog.showModal();
  dialog.querySelector("[aria-invalid=true]")?.focus();
});
addEventListener("htmx:after:settle", lift);
lift();
