// One place on the wall: which task instance it is of, what is known of it, and how it is shown.

import { keyOf, readTask, readValue } from "./airflow.js";
import { CardView } from "./card-view.js";
import { cardOf, mayChange, withTask } from "./card.js";
import { element } from "./element.js";
import { keepingFocus } from "./focus.js";
import { ListView } from "./list-view.js";
import { unwatch, watch } from "./sight.js";
import { NotWantedError } from "./turns.js";

export class Item {
  /**
   * @param {object} entry ids of the task instance.
   * @param {object} told `open(entry)` shows it alone; `read(item)` hears when something new is known;
   *   `seen(item, isSeen)` hears when it comes into view and leaves it.
   */
  constructor(entry, { open = null, read = () => {}, seen = () => {} } = {}) {
    this.entry = entry;
    this.key = keyOf(entry);
    this.told = { open, read, seen };
    this.card = null;
    this.isGone = false;
    this.reading = null;
    this.isNear = false;
    this.isVisible = false;
    this.view = new CardView(entry, open);
    this.node = element("li", {}, this.view.node);
    watch(this.node, this);
  }

  get mayChange() {
    return this.card !== null && mayChange(this.card);
  }

  onNear() {
    this.isNear = true;
    this.read("now");
  }

  onFar() {
    this.isNear = false;
  }

  onVisible() {
    this.isVisible = true;
    this.view.onVisible();
    this.told.seen(this, true);
  }

  onHidden() {
    this.isVisible = false;
    this.view.onHidden();
    this.told.seen(this, false);
  }

  /** Read it once. What is read "now" is left alone if it is out of sight again before its turn. */
  read(urgency) {
    if (this.card) return null;
    this.reading ??= this.look(urgency).finally(() => { this.reading = null; });
    return this.reading;
  }

  /** Ask again what became of it. */
  async lookAgain() {
    const [value, task] = await Promise.all([
      readValue({ ...this.entry, timestamp: null }, "now"),
      readTask(this.entry, "now"),
    ]);
    this.learn(value, task);
  }

  async look(urgency) {
    try {
      const value = await readValue(this.entry, urgency, () => urgency !== "now" || this.isNear);
      if (!this.card) this.learn(value, null);
    } catch (error) {
      if (!(error instanceof NotWantedError) && !this.card) {
        keepingFocus(this.node, () => this.view.showError(error.message, () => this.read("first")));
      }
    }
  }

  learn(value, task) {
    this.task = task ?? this.task;
    if (value === null) {
      this.isGone = !this.card;
      if (this.card && this.task) this.showTask(this.task);
    } else {
      const card = withTask(cardOf(value), task);
      if (sameCard(card, this.card)) return;
      this.show(card);
    }
    this.told.read(this);
  }

  /** A task that runs again has no XCom until it has asked again. */
  showTask(task) {
    this.show({ ...this.card, state: "queued", isWaiting: true, waits: true, submittedAt: task.start_date, files: [], link: null });
  }

  show(card) {
    this.card = card;
    keepingFocus(this.node, () => {
      if (card.kind === "list" && !(this.view instanceof ListView)) {
        this.view = new ListView(this.entry, this.told.open);
        this.node.classList.add("wide");
        this.node.replaceChildren(this.view.node);
      }
      this.view.show(card);
    });
    if (this.isVisible) this.view.onVisible();
  }

  end() {
    unwatch(this.node);
    this.view.player?.end();
    this.view.end?.();
  }
}

function sameCard(one, other) {
  return other !== null && JSON.stringify(one) === JSON.stringify(other);
}
