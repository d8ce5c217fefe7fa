// What the videos cost: sums by day and by Dag, what is recorded apart from what is only estimated.

import { merged } from "./card.js";
import { timeOf } from "./index-of-videos.js";
import { day } from "./words.js";

export const DAYS = 30;
const DAY = 24 * 60 * 60 * 1000;
// What these cost nothing, or nothing is known of it.
const FREE = new Set(["queued", "failed", "dry_run", "not_submitted", "unknown"]);

/** @param {Array<{entry: object, card: object, tasks: Map|null}>} known with the Kling tasks of lists, as far as known. */
export function add(known, now = Date.now()) {
  const days = new Map(lastDays(now).map((name) => [name, sum()]));
  const dags = new Map();
  const all = sum();
  for (const { entry, card } of once(known)) {
    const spent = spentOn(card);
    const name = day(card.submittedAt ?? card.completedAt ?? card.toldAt);
    if (!spent || !days.has(name)) continue;
    if (!dags.has(entry.dag_id)) dags.set(entry.dag_id, sum());
    for (const one of [days.get(name), dags.get(entry.dag_id), all]) {
      one.recorded += spent.recorded;
      one.estimated += spent.estimated;
      one.videos += spent.videos;
    }
  }
  const byDag = [...dags].map(([name, of]) => ({ name, ...of }));
  byDag.sort((one, other) => total(other) - total(one) || (one.name < other.name ? -1 : 1));
  return { byDay: [...days].map(([name, of]) => ({ name, ...of })), byDag, all };
}

export function total(one) {
  return one.recorded + one.estimated;
}

/** What one video, or one list, has cost or will cost by all that is known, USD. */
export function spentOn(card) {
  if (card.kind === "list") return spentOnList(card);
  if (FREE.has(card.state) || (card.recorded === null && card.estimated === null)) return null;
  return card.recorded === null
    ? { recorded: 0, estimated: card.estimated, videos: 1 }
    : { recorded: card.recorded, estimated: 0, videos: 1 };
}

function spentOnList(card) {
  const { counts } = card;
  const billed = counts.completed + counts.undelivered + counts.unresolved;
  const videos = card.isWaiting ? counts.total : billed;
  if (!videos || (card.recorded === null && card.estimated === null)) return null;
  const recorded = card.recorded ?? 0;
  const isAllRecorded = card.recorded !== null && counts.recordedVideos !== null && counts.recordedVideos >= videos;
  const estimated = isAllRecorded ? 0 : Math.max(0, (card.estimated ?? 0) - recorded);
  return { recorded, estimated, videos };
}

/** Several tasks can tell of one video: the one that asked for it paid (a list too), or else the one that told of it first. */
function once(known) {
  const byTask = new Map();
  const others = [];
  // Only of lists that count: what another task tells of a video's cost is better than nothing.
  const inLists = new Set(known.filter(({ card }) => card.kind === "list" && spentOn(card))
    .flatMap(({ tasks }) => [...(tasks?.keys() ?? [])]));
  for (const one of known) {
    const id = one.card.kind === "video" ? one.card.klingTaskId : null;
    if (!id) others.push(one);
    else if (!byTask.has(id)) byTask.set(id, one);
    else {
      const before = byTask.get(id);
      byTask.set(id, { entry: payerOf(before, one).entry, card: merged(before.card, one.card) });
    }
  }
  const single = [...byTask].filter(([id, { card }]) => card.hasAsked || !inLists.has(id)).map(([, one]) => one);
  return [...single, ...others];
}

function payerOf(one, other) {
  if (one.card.hasAsked !== other.card.hasAsked) return one.card.hasAsked ? one : other;
  return timeOf(other.entry) < timeOf(one.entry) ? other : one;
}

function lastDays(now) {
  // By the calendar: where clocks change, a day of the chosen time zone has 23 or 25 hours.
  const today = Date.parse(`${day(new Date(now).toISOString())}T12:00:00Z`);
  return Array.from({ length: DAYS }, (_, at) => new Date(today - (DAYS - 1 - at) * DAY).toISOString().slice(0, 10));
}

function sum() {
  return { recorded: 0, estimated: 0, videos: 0 };
}
