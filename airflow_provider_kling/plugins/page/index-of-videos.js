// Which videos there are, newest first, as far as they have been asked for. It knows where, not yet what.

import { keyOf, listEntries } from "./airflow.js";

export class IndexOfVideos {
  /** @param {string|null} dagId of one Dag only, or of all that the person may read. */
  constructor(dagId) {
    this.dagId = dagId ?? "~";
    this.entries = [];
    this.total = null;
    this.isWhole = false;
    this.isByName = false; // Airflow before 3.2 sorts by names and by nothing else
    this.seen = new Set();
    this.offset = 0;
    this.pending = null;
    this.looking = null;
  }

  /** Ask for the next page. What is under way already is not asked for twice. */
  more(urgency = "first") {
    this.pending ??= Promise.allSettled([this.looking]).then(() => this.read(urgency)).finally(() => { this.pending = null; });
    return this.pending;
  }

  /** Ask until everything newer than a moment (epoch milliseconds) is there. */
  async reach(since, urgency) {
    while (!this.reaches(since)) await this.more(urgency);
  }

  reaches(since) {
    return this.isWhole || (this.entries.length > 0 && timeOf(this.entries.at(-1)) < since);
  }

  /** Look for what has come since, and return it, newest first. */
  news() {
    // One at a time with more(): what comes between two questions moves the place of all that is behind it.
    this.looking = this.look(this.pending);
    return this.looking;
  }

  async look(before) {
    await before;
    if (this.total === null) return [];
    const come = new Map();
    const known = this.total;
    let offset = 0;
    let hasMore = true;
    while (hasMore) {
      const { entries, total } = await listEntries(this.dagId, offset, "first");
      this.note(entries);
      // What is older than all that was read is no news: more() brings it.
      const some = entries.filter((entry) => !this.seen.has(keyOf(entry)) && this.reaches(timeOf(entry)));
      some.forEach((entry) => come.set(keyOf(entry), entry));
      offset += entries.length;
      this.total = total;
      // What is new stands before what is known; among names it can be on any page, and only its number tells of it.
      const isLikely = this.isByName ? total !== known : some.length > 0;
      hasMore = isLikely && entries.length > 0 && offset < total;
    }
    const fresh = this.take([...come.values()]);
    this.offset += fresh.length;
    this.sort();
    return fresh.sort(newestFirst);
  }

  async read(urgency) {
    do {
      const { entries, total } = await listEntries(this.dagId, this.offset, urgency);
      this.offset += entries.length;
      this.total = total;
      this.isWhole = entries.length === 0 || this.offset >= total;
      this.note(entries);
      this.take(entries);
      // Among names the newest can be on any page, so all of them are needed.
    } while (!this.isWhole && this.isByName);
    this.sort();
  }

  /** Learn from a page in which order Airflow gives them. */
  note(entries) {
    this.isByName ||= entries.some((entry, at) => at > 0 && timeOf(entries[at - 1]) < timeOf(entry));
  }

  take(entries) {
    const fresh = entries.filter((entry) => !this.seen.has(keyOf(entry)));
    fresh.forEach((entry) => this.seen.add(keyOf(entry)));
    this.entries.push(...fresh);
    return fresh;
  }

  sort() {
    this.entries.sort(newestFirst);
  }
}

export function timeOf(entry) {
  return Date.parse(entry.timestamp) || 0;
}

function newestFirst(one, other) {
  return timeOf(other) - timeOf(one);
}
