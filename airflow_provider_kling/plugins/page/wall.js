// The wall: cards in the order of the index, more of them as the person scrolls, those that the filters want.

import { isWorthMore, merged } from "./card.js";
import { element } from "./element.js";
import { timeOf } from "./index-of-videos.js";
import { Item } from "./item.js";

const A_SCREEN = 24; // cards that are looked at together where they have to be read first

export class Wall {
  /**
   * @param {object} parts `index`, `filters`, `lists`, `node` (the list), `foot` (below it), `read(item)` when an item's
   *   card is known, `open(entry)`, `seen(item, isSeen)`, `counted()`, `failed(error)`.
   */
  constructor(parts) {
    Object.assign(this, parts);
    this.items = [];
    this.byTask = new Map();
    this.next = 0;
    this.shown = 0;
    this.isOver = false;
    this.isEnded = false;
    this.isWanted = false;
    this.hasFailed = false;
    this.node.replaceChildren();
    // Far below the window, so that the person does not meet the end of the wall.
    this.watching = new IntersectionObserver(([change]) => {
      this.isWanted = change.isIntersecting;
      if (this.isWanted) this.grow();
    }, { rootMargin: "1500px 0px" });
    this.watching.observe(this.foot);
  }

  /** Add cards for as long as the end of the wall is near. */
  async grow() {
    if (this.growing || this.isEnded) return;
    this.growing = true;
    try {
      while (this.isWanted && !this.isOver && !this.isEnded) await this.addSome();
    } catch (error) {
      this.hasFailed = true;
      if (!this.isEnded) this.failed(error);
      this.isOver = true;
    } finally {
      this.growing = false;
    }
    if (!this.isEnded && !this.hasFailed) this.counted();
  }

  /** Put what has come since at the top. */
  addNew(entries) {
    for (const entry of [...entries].reverse()) {
      this.next += 1; // the index has it before all others
      if (timeOf(entry) < this.filters.since) continue;
      const item = this.make(entry);
      this.items.unshift(item);
      this.node.prepend(item.node);
      this.judge(item);
    }
    this.counted();
  }

  end() {
    this.isEnded = true;
    this.watching.disconnect();
    this.items.forEach((item) => item.end());
    this.node.replaceChildren();
  }

  async addSome() {
    const since = this.filters.since;
    if (this.next >= this.index.entries.length && !this.index.reaches(since)) await this.index.more();
    if (this.isEnded) return;
    const needsCards = this.filters.needsCards;
    const upTo = needsCards ? this.next + A_SCREEN : this.index.entries.length;
    const some = this.index.entries.slice(this.next, upTo).filter((entry) => timeOf(entry) >= since);
    this.next = Math.min(upTo, this.index.entries.length);
    const items = some.map((entry) => this.make(entry));
    this.items.push(...items);
    items.forEach((item) => this.judge(item));
    this.node.append(...items.map((item) => item.node));
    this.isOver = this.next >= this.index.entries.length && this.index.reaches(since);
    if (needsCards) await Promise.all(items.map((item) => item.read("first")));
    this.counted();
    // Let the browser lay out and tell whether more is wanted.
    await new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });
  }

  make(entry) {
    this.filters.offer("dag", entry.dag_id);
    return new Item(entry, { open: this.open, seen: this.seen, read: (item) => this.learned(item) });
  }

  learned(item) {
    if (item.card) {
      this.filters.offer("model", item.card.model);
      // Before it is shown with what others know: the sums want to know which task has asked.
      this.read(item);
      this.settle(item);
    }
    this.judge(item);
    if (this.filters.needsCards || item.card?.kind === "list") this.counted();
  }

  /** Several tasks can tell of one video: it is shown once, with all that they know. */
  settle(item) {
    const id = item.card.kind === "video" ? item.card.klingTaskId : null;
    if (!id) return;
    const other = this.byTask.get(id);
    if (!other || other === item) {
      this.byTask.set(id, item);
      return;
    }
    const [winner, loser] = isWorthMore(item.card, other.card) ? [item, other] : [other, item];
    this.byTask.set(id, winner);
    loser.isGone = true;
    this.judge(loser);
    winner.show(merged(winner.card, loser.card));
  }

  /** Show it or hide it. */
  async judge(item) {
    const { filters } = this;
    let wanted = !item.isGone && !this.isInList(item) && (!filters.dag || item.entry.dag_id === filters.dag);
    if (wanted && item.card) wanted = filters.wants(item.card);
    else if (wanted) wanted = !filters.needsCards;
    item.node.hidden = !wanted;
    if (wanted && item.card?.kind === "list" && (filters.text || item.view.wanted)) {
      item.node.hidden = (await item.view.narrow(filters.text)) === 0 && Boolean(filters.text);
      this.counted();
    }
    if (this.lists.tasksOf(item.entry)) this.judgeStrays();
  }

  /** Show or hide what tasks tell of that asked for nothing: it may be in a list that is shown here. */
  judgeStrays() {
    this.items.filter(isStray).forEach((item) => this.judge(item));
    this.counted();
  }

  /** Whether a list that is shown here shows this video too, and can play it as well. */
  isInList(item) {
    if (!isStray(item)) return false;
    return this.items.some((list) => {
      const tasks = list.card?.kind === "list" && !list.node.hidden ? this.lists.tasksOf(list.entry) : null;
      return tasks?.has(item.card.klingTaskId) && (tasks.get(item.card.klingTaskId) || !item.card.files.length);
    });
  }

  /** How many are shown, and of how many it is known whether they are to be. */
  tally() {
    const items = this.items.filter((item) => !item.node.hidden);
    const inLists = items.reduce((sum, { card }) => sum + (card?.kind === "list" ? card.counts.total - 1 : 0), 0);
    return { shown: items.length, inLists, looked: this.items.length, isOver: this.isOver, total: this.index.total };
  }
}

function isStray({ card }) {
  return card?.kind === "video" && !card.hasAsked && card.klingTaskId !== null;
}

export function foot() {
  return element("div.foot", { "aria-hidden": "true" });
}
