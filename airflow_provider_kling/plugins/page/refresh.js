// Looks again at what waits: only what can be seen, only while this page can be seen, and only while something waits.

const EVERY = 10_000; // ms
const FIRST = 400; // ms from when a waiting video is seen: its task may have ended without a word
const MOST = 12; // looked at again in one round

export class Refresh {
  /** @param {() => Promise} news looks for videos that have come since. */
  constructor(news) {
    this.news = news;
    this.waiting = new Set();
    this.timer = null;
    this.isDue = EVERY;
    document.addEventListener("visibilitychange", () => this.plan(FIRST));
    setInterval(() => this.tick(), 1000);
  }

  seen(item, isSeen) {
    if (isSeen) this.waiting.add(item);
    else this.waiting.delete(item);
    this.plan(item.lookedAt ? EVERY : FIRST);
  }

  /** Something new is known of an item. */
  read(item) {
    if (item.isVisible) this.seen(item, true);
  }

  forget() {
    this.waiting.clear();
    clearTimeout(this.timer);
    this.timer = null;
  }

  /** Look again after a while, sooner if that was planned. */
  plan(after) {
    if (document.hidden || ![...this.waiting].some((item) => item.mayChange)) return;
    if (this.timer && this.isDue <= Date.now() + after) return;
    clearTimeout(this.timer);
    this.isDue = Date.now() + after;
    this.timer = setTimeout(() => this.look(), after);
  }

  tick() {
    if (document.hidden) return;
    const now = Date.now();
    for (const item of this.waiting) if (item.mayChange) item.view.tick(now);
  }

  async look() {
    this.timer = null;
    const due = [...this.waiting].filter((item) => item.mayChange);
    due.sort((one, other) => (one.lookedAt ?? 0) - (other.lookedAt ?? 0));
    // Whatever cannot be read now is read the next time.
    await Promise.allSettled(due.slice(0, MOST).map(async (item) => {
      item.lookedAt = Date.now();
      await item.lookAgain();
    }));
    if (due.length) await Promise.allSettled([this.news()]);
    this.plan(EVERY);
  }
}
