// What happens around every request: the bar at the top, busy buttons, focus, errors. Bundled into app.js.
const root = document.documentElement;
let open = 0;

const isBoosted = (element) => Boolean(element?._htmx?.boosted);
const streams = (element) => element?.hasAttribute?.("hx-sse:connect");

addEventListener("htmx:before:request", ({ detail: { ctx } }) => {
  if (streams(ctx.sourceElement)) return;
  // Remembered here: the swap may remove the element and put the page's main area in its place.
  ctx.showsBar = isBoosted(ctx.sourceElement);
  if (ctx.showsBar) root.classList.toggle("is-loading", ++open > 0);
  const button = ctx.request.submitter ?? (ctx.sourceElement.matches("button") ? ctx.sourceElement : null);
  if (!button) return;
  ctx.busyButton = button;
  button.setAttribute("aria-busy", "true");
  button.disabled = true;
});

addEventListener("htmx:finally:request", ({ detail: { ctx } }) => {
  if (streams(ctx.sourceElement)) return;
  if (ctx.showsBar) root.classList.toggle("is-loading", (open = Math.max(0, open - 1)) > 0);
  ctx.busyButton?.removeAttribute("aria-busy");
  if (ctx.busyButton) ctx.busyButton.disabled = false;
});

// A new page: close what is open, then the heading (or the first field with an error) gets the focus.
addEventListener("htmx:before:swap", ({ detail: { ctx } }) => {
  if (!isBoosted(ctx.sourceElement) || ctx.response?.status === 422) return;
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  document.querySelectorAll("#rail details[open]").forEach((details) => (details.open = false));
});
addEventListener("htmx:after:swap", ({ detail: { ctx } }) => {
  const invalid = document.querySelector("#main [aria-invalid='true'], dialog[open] [aria-invalid='true']");
  if (ctx.response?.status === 422 && invalid) return invalid.focus();
  if (!isBoosted(ctx.sourceElement) && ctx.target?.id !== "main") return;
  const heading = document.querySelector("#main h1") ?? document.querySelector("#main");
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
});

// Answers that do not swap: sign in again, show the whole error page of a link, or say it in a toast.
addEventListener("htmx:response:error", ({ detail: { ctx } }) => {
  const { status, headers } = ctx.response;
  if (status === 422 || streams(ctx.sourceElement)) return;
  if (status === 401) {
    ctx.status = "handled";
    location.href = `/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`;
  } else if (isBoosted(ctx.sourceElement) && ctx.request.method === "GET") {
    ctx.status = "handled";
    location.href = ctx.request.action;
  } else {
    ctx.status = "handled";
    const sentence = decodeURIComponent(headers.get("X-Error") ?? "");
    toast(root.dataset.errorTitle ?? "That did not work.", sentence, "bad");
  }
});

addEventListener("htmx:error", ({ detail: { ctx, error } }) => {
  if (!ctx || streams(ctx.sourceElement) || error?.name === "AbortError") return;
  toast("The server cannot be reached.", "Nothing is lost. Try again in a moment.", "bad");
});

// A dialog's form was accepted: the answer's HX-Trigger says so.
addEventListener("close-dialog", ({ target }) => target.closest?.("dialog")?.close());
addEventListener("show-toast", ({ detail }) => toast(detail.title ?? "", detail.text ?? "", detail.tone ?? "good"));

function toast(title, text, tone) {
  const region = document.getElementById("toasts");
  const element = document.getElementById("toast-template").content.firstElementChild.cloneNode(true);
  element.dataset.tone = tone;
  element.querySelector("use").setAttribute("href", element.querySelector("use").getAttribute("href").replace(/#.*/, tone === "good" ? "#circle-check" : "#circle-alert"));
  element.querySelector(".toast-title").textContent = title;
  element.querySelector(".toast-text").textContent = text;
  region.append(element);
  announce(`${title} ${text}`);
}
function announce(text) {
  document.getElementById("announcer").textContent = text;
}
Object.assign(window, { gptBuilder: { toast, announce } });
