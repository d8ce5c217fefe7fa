// A list of videos that one task makes: how far it is, and then all its videos.

import { readVideosOf } from "./airflow.js";
import { cardOf } from "./card.js";
import { CardView, cost, reasonOf } from "./card-view.js";
import { element } from "./element.js";
import { unwatch, watch } from "./sight.js";
import * as words from "./words.js";

const AT_ONCE = 12;
const KINDS = [["completed", "completed"], ["failed", "failed"], ["undelivered", "not delivered"],
  ["unresolved", "unresolved"], ["not_submitted", "not asked for"]];

export class ListView extends CardView {
  constructor(entry, open = null) {
    super(entry, open);
    this.node = element("article.card.list", { "aria-labelledby": this.titleId });
    this.views = [];
    this.total = null;
    this.wanted = "";
    this.videos = element("ol.wall", { "aria-label": "Videos of this list" });
    this.more = element("button.button", { type: "button", hidden: true, click: () => this.load() });
    this.trouble = element("p.reason", { role: "status", hidden: true });
  }

  show(card) {
    const before = this.card?.state;
    this.card = card;
    this.node.dataset.state = card.state;
    this.node.replaceChildren(this.header(card), this.videos, element("p.actions", {}, this.trouble, this.more));
    // While it is going on, its results are not there to be read.
    if (!card.isWaiting && (this.total === null || before !== card.state)) this.load();
  }

  tick() {}

  onVisible() {}

  onHidden() {}

  /** Show only the videos whose prompt has these words; how many of those that are loaded do. */
  async narrow(text) {
    this.wanted = text;
    await this.loading;
    return this.hideOthers();
  }

  hideOthers() {
    let found = 0;
    for (const view of this.views) {
      const matches = !this.wanted || (view.card.prompt ?? "").toLowerCase().includes(this.wanted);
      view.row.hidden = !matches;
      found += matches ? 1 : 0;
    }
    return found;
  }

  load() {
    this.loading ??= this.read().catch((error) => {
      this.trouble.hidden = false;
      this.trouble.textContent = `Its videos could not be read: ${error.message}`;
      this.more.hidden = false;
      this.more.textContent = "Try again";
    }).finally(() => { this.loading = null; });
    return this.loading;
  }

  async read() {
    const { videos, total } = await readVideosOf(this.entry, this.views.length, AT_ONCE);
    this.trouble.hidden = true;
    this.total = total;
    for (const video of videos) this.add(video);
    const left = videos.length ? total - this.views.length : 0;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show ${Math.min(left, AT_ONCE)} more of ${words.count(total, "video")}`;
    if (!total && this.card.counts.completed) {
      this.trouble.hidden = false;
      this.trouble.textContent = "What became of each video is not to be found any more: see the task's XComs and log.";
    }
    this.hideOthers();
  }

  add(video) {
    const view = new CardView(this.entry);
    view.row = element("li", {}, view.node);
    this.views.push(view);
    this.videos.append(view.row);
    view.show(cardOf(video));
    watch(view.row, view);
  }

  end() {
    this.views.forEach((view) => unwatch(view.row));
  }

  header(card) {
    const { total } = card.counts;
    const title = `List of ${words.count(total, "video")}`;
    const state = card.isWaiting ? "in progress" : card.state === "failed" ? "its task failed" : null;
    return element("header.list-head", {},
      element("div.list-title", {}, element("h2.prompt", { id: this.titleId }, title),
        state ? element("span.badge", { "data-state": card.state }, state) : null,
        this.open ? this.aloneButton(title) : null),
      this.place(card),
      progress(card),
      card.error ? reasonOf(card.error) : null,
      cost(card));
  }
}

function progress(card) {
  const counts = card.counts;
  const told = KINDS.filter(([name]) => counts[name] > 0).map(([name, words_]) => `${counts[name]} ${words_}`);
  const done = KINDS.reduce((sum, [name]) => sum + counts[name], 0);
  const left = Math.max(0, counts.total - done);
  if (left && card.isWaiting) told.push(`${left} to come`);
  const label = told.join(", ") || "nothing yet";
  const bar = element("div.progress", { "aria-hidden": "true" });
  for (const [name, many] of [...KINDS.map(([kind]) => [kind, counts[kind]]), ["left", left]]) {
    if (many) bar.append(part(name, many));
  }
  return element("div.progress-row", {}, bar, element("p.progress-words", {}, label));
}

function part(name, count) {
  const node = element(`span.${name}`);
  node.style.flexGrow = String(count);
  return node;
}
