// A notice of the browser when the run of this page ends; asked for by a click, kept for this tab.
customElements.define("run-notice", class extends HTMLElement {
  connectedCallback() {
    if (!("Notification" in window)) return;
    this.hidden = false;
    this.button = this.querySelector("button");
    this.key = `notice:${this.dataset.run}`;
    this.stream = document.getElementById(this.dataset.stream);
    this.tell = () => {
      if (!sessionStorage.getItem(this.key)) return;
      sessionStorage.removeItem(this.key);
      new Notification(this.dataset.title, { tag: this.dataset.run });
    };
    this.stream?.addEventListener("done", this.tell);
    this.button.onclick = async () => {
      if ((await Notification.requestPermission()) === "granted") sessionStorage.setItem(this.key, "1");
      this.show();
    };
    this.show();
  }
  disconnectedCallback() {
    this.stream?.removeEventListener("done", this.tell);
  }
  show() {
    const isOn = Notification.permission === "granted" && sessionStorage.getItem(this.key);
    this.button.hidden = Boolean(isOn) || Notification.permission === "denied";
    this.querySelector("p").textContent = isOn ? this.dataset.on : Notification.permission === "denied" ? this.dataset.off : "";
  }
});
