// One player. It loads when it is seen and lets go when it is not, so that a thousand of them cost what a few cost.

import { whyNot } from "./airflow.js";
import { element, icon } from "./element.js";

const FIRST_FRAME = 0.001; // seconds: a place in the file makes the browser draw it, and so it is its own poster

let playing = null;

export class Player {
  /**
   * @param {string} address of the video. @param {boolean} isStored whether it is a file of ours.
   * @param {string} label for screen readers.
   * @param {(message: string) => void} onBroken told what a person can do about it.
   */
  constructor(address, { isStored, label, onBroken }) {
    this.address = address;
    this.isStored = isStored;
    this.onBroken = onBroken;
    this.at = FIRST_FRAME;
    this.video = element("video", {
      preload: "metadata", playsinline: true, "data-control": "video", "aria-label": `Video: ${label}`,
      error: () => this.broken(), play: () => this.started(), timeupdate: () => this.remember(),
    });
    // The controls would cover the picture of every video on the wall: they come with the first play.
    this.button = element("button.play", { type: "button", "data-control": "play", "aria-label": `Play: ${label}`,
      click: () => this.play() }, icon("M8 5v14l11-7z"));
    this.node = element("div.player", {}, this.video, this.button);
  }

  play() {
    this.wake();
    this.showControls();
    this.video.focus({ preventScroll: true });
    this.video.play().catch(() => {}); // what went wrong comes as an event
  }

  showControls() {
    this.video.controls = true;
    this.button.remove();
  }

  wake() {
    if (this.video.hasAttribute("src")) return;
    this.video.src = `${this.address}#t=${this.at}`;
  }

  sleep() {
    if (!this.video.hasAttribute("src") || !this.video.paused) return;
    this.video.removeAttribute("src");
    this.video.load(); // or the browser would go on loading
  }

  /** Let go for good. */
  end() {
    this.video.pause();
    this.sleep();
  }

  started() {
    this.showControls();
    if (playing && playing !== this.video) playing.pause();
    playing = this.video;
  }

  remember() {
    if (this.video.currentTime > 0) this.at = this.video.ended ? FIRST_FRAME : this.video.currentTime;
  }

  async broken() {
    if (!this.video.hasAttribute("src")) return;
    this.onBroken(this.isStored ? await whyFile(this.address) : whyLink(this.address));
  }
}

async function whyFile(address) {
  const why = await whyNot(address);
  if (why === null) return "This browser cannot play the file. Download it instead.";
  if (why.status === 0) return "Airflow's API server cannot be reached. Try again when it can.";
  if (why.status === 401) return "You are not logged in any more. Load this page again.";
  if (why.status === 403) return "You may not read the XComs of this Dag, so its videos are not shown to you.";
  return why.detail || `The file cannot be had: Airflow answered ${why.status}. The API server's log tells more.`;
}

function whyLink(address) {
  return `The service's file cannot be played here. Either ${new URL(address).origin} does not give it any more, or it is `
    + "not among the hosts that this page may play from: [kling] media_hosts in Airflow's configuration.";
}
