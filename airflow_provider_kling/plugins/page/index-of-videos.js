// Which videos there are, newest first, as far as they have been asked for. It knows where, not yet what.

import { keyOf, listEntries } from "./airflow.js";

export class IndexOfVideos {
  /** @param {string|null} dagId of one Dag only, or of all that the person may read. */
  constructor(dagId) {
    this.dagId = dagId ?? "~";
    this.entries = [];
    this.total = null;
    this.isWhole = false;
    this.seen = new Set();
    this.offset = 0;
    this.pending = null;
  }

  /** Ask for the next page. What is under way already is not asked for twice. */
  more(urgency = "first") {
    this.pending ??= this.read(urgency).finally(() => { this.pending = null; });
    return this.pending;
  }

  /** Ask until everything newer than a moment (epoch milliseconds) is there. */
  async reach(since, urgency) {
    while (!this.reaches(since)) await this.more(urgency);
  }

  reaches(since) {
    return this.isWhole || (this.entries.length > 0 && timeOf(this.entries.at(-1)) < since);
  }

  /** Look for what has come since, and return it. */
  async news() {
    const { entries, total } = await listEntries(this.dagId, 0, "first");
    const fresh = this.take(entries);
    this.offset += fresh.length;
    this.total = total;
    this.sort();
    return fresh;
  }

  async read(urgency) {
    do {
      const { entries, total } = await listEntries(this.dagId, this.offset, urgency);
      this.offset += entries.length;
      this.total = total;
      this.isWhole = entries.length === 0 || this.offset >= total;
      this.take(entries);
      // Before Airflow 3.2 the order is that of names: the newest can be on any page, so all of them are needed.
    } while (!this.isWhole && !isNewestFirst(this.entries));
    this.sort();
  }

  take(entries) {
    const fresh = entries.filter((entry) => !this.seen.has(keyOf(entry)));
    fresh.forEach((entry) => this.seen.add(keyOf(entry)));
    this.entries.push(...fresh);
    return fresh;
  }

  sort() {
    this.entries.sort((one, other) => timeOf(other) - timeOf(one));
  }
}

export function timeOf(entry) {
  return Date.parse(entry.timestamp) || 0;
}

function isNewestFirst(entries) {
  return entries.every((entry, at) => at === 0 || timeOf(entries[at - 1]) >= timeOf(entry));
}
