// The stream extension reconnects after a break, but not when its first request fails: this retries with growing pauses.
const FIRST_S = 1, LONGEST_S = 30;

function again(element) {
  if (!element?.isConnected || !element.hasAttribute("hx-sse:connect")) return;
  const tries = Number(element.dataset.tries ?? 0);
  element.dataset.tries = tries + 1;
  element.dataset.connection = "lost";
  const pause = Math.min(LONGEST_S, FIRST_S * 2 ** tries) * (0.85 + 0.3 * Math.random());
  setTimeout(() => element.isConnected && element.dispatchEvent(new CustomEvent("retry")), pause * 1000);
}

addEventListener("htmx:response:error", ({ detail: { ctx } }) => ctx.response.status >= 429 && again(ctx.sourceElement));
addEventListener("htmx:error", ({ detail: { ctx } }) => again(ctx?.sourceElement));
addEventListener("htmx:sse:error", ({ target }) => target.dataset && (target.dataset.connection = "lost"));
addEventListener("htmx:sse:after:connection", ({ target }) => {
  delete target.dataset.tries;
  target.dataset.connection = "open";
});
