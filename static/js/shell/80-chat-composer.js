// Enter sends on a keyboard, Shift+Enter breaks the line, phones use the button; the view follows new text only at the end.
// While an answer is written the button stops it, and what is typed meanwhile waits.
customElements.define("chat-composer", class extends HTMLElement {
  connectedCallback() {
    const box = this.querySelector("textarea");
    const form = this.querySelector("form");
    const isTouched = matchMedia("(pointer: coarse)"); // and no mouse is no phone: some people have only keys
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || isTouched.matches) return;
      event.preventDefault();
      if (box.value.trim() && !this.isBusy) form.requestSubmit();
    });
    form.addEventListener("submit", () => {
      const typed = box.value;
      setTimeout(() => {
        box.value = "";
        this.follow(true);
      });
      // What was typed comes back when it could not be sent.
      this.typedAgain = ({ detail: { ctx } }) => ctx?.sourceElement === form && !box.value && (box.value = typed);
    });
    this.onfailure = (event) => this.typedAgain?.(event);
    for (const name of ["htmx:response:error", "htmx:error"]) addEventListener(name, this.onfailure);
    this.list = document.getElementById(this.dataset.list);
    this.jump = this.querySelector("[data-jump]");
    this.jump?.addEventListener("click", () => this.follow(true));
    this.stop = this.querySelector("[data-stop]");
    this.stop.addEventListener("click", () => {
      for (const button of this.list.querySelectorAll('form[action$="/stop"] button')) button.click();
    });
    this.watcher = new MutationObserver(() => {
      this.follow();
      this.turn();
    });
    if (this.list) this.watcher.observe(this.list, { childList: true, subtree: true, characterData: true });
    this.turn();
    this.onscroll = () => {
      this.isAtEnd = this.distance() < 80;
      if (this.isAtEnd && this.jump) this.jump.hidden = true;
    };
    addEventListener("scroll", this.onscroll, { passive: true });
    this.isAtEnd = true;
    this.follow(true);
  }
  disconnectedCallback() {
    this.watcher?.disconnect();
    removeEventListener("scroll", this.onscroll);
    for (const name of ["htmx:response:error", "htmx:error"]) removeEventListener(name, this.onfailure);
  }
  turn() {
    const hadFocus = this.contains(document.activeElement) && document.activeElement.matches("[data-stop], [type=submit]");
    this.isBusy = Boolean(this.list?.querySelector('[aria-busy="true"]'));
    this.stop.hidden = !this.isBusy;
    this.querySelector("[type=submit]").hidden = this.isBusy;
    if (hadFocus) this.querySelector(this.isBusy ? "[data-stop]" : "[type=submit]").focus();
  }
  distance() {
    const page = document.scrollingElement;
    return page.scrollHeight - page.scrollTop - page.clientHeight;
  }
  follow(always = false) {
    if (always || this.isAtEnd) document.scrollingElement.scrollTo({ top: document.scrollingElement.scrollHeight });
    else if (this.jump) this.jump.hidden = false;
    if (always) this.isAtEnd = true;
  }
});
