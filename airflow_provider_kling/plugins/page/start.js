// Puts the parts together: all videos with their filters and their sums, or one video alone.

import { keyOf, readTask, readValue } from "./airflow.js";
import { cardOf } from "./card.js";
import { element } from "./element.js";
import { Filters } from "./filters.js";
import { query, setQuery } from "./frame.js";
import { IndexOfVideos, timeOf } from "./index-of-videos.js";
import { Item } from "./item.js";
import { Lists } from "./lists.js";
import { DAYS } from "./money.js";
import { MoneyView } from "./money-view.js";
import * as notices from "./notice.js";
import { Refresh } from "./refresh.js";
import { followTheme } from "./theme.js";
import { Wall } from "./wall.js";
import * as words from "./words.js";

const SUMMED_UNASKED = 500; // tasks that are read for the sums before anybody asks for them
const IDS = ["dag_id", "run_id", "task_id"];

const parts = Object.fromEntries(["title", "count", "reload", "filters", "money", "notice", "wall", "more", "main"]
  .map((id) => [id, document.getElementById(id)]));
const known = new Map();
const lists = new Lists(() => {
  wall?.judgeStrays();
  if (hasBegun) drawSoon();
});
const everything = new IndexOfVideos(null);
let index = everything;
let wall = null;
let alone = null;

followTheme();
const filters = new Filters(parts.filters, () => {
  setQuery(filters.toQuery());
  showAll();
}, leadToHeading);
const money = new MoneyView(parts.money, () => addUp(Infinity));
const refresh = new Refresh(async () => {
  if (!wall) return;
  const asked = index;
  const fresh = await asked.news();
  // Meanwhile another Dag may have been chosen, which has an index of its own.
  if (asked === index) wall?.addNew(fresh);
});
parts.reload.addEventListener("click", () => location.reload());
start();

function start() {
  const opened = query();
  if (IDS.every((name) => opened.get(name))) {
    const mapIndex = Number.parseInt(opened.get("map_index") ?? "-1", 10);
    showAlone({ ...Object.fromEntries(IDS.map((name) => [name, opened.get(name)])),
      map_index: Number.isNaN(mapIndex) ? -1 : mapIndex });
  } else {
    filters.read(opened);
    setQuery(filters.toQuery());
    showAll();
  }
}

function clear() {
  wall?.end();
  wall = null;
  alone?.end();
  alone = null;
  refresh.forget();
  parts.notice.replaceChildren();
  parts.main.querySelector(".alone-head")?.remove();
}

function showAll() {
  clear();
  document.body.classList.remove("one");
  const dag = filters.dag;
  if (dag === null) index = everything;
  else if (index.dagId !== dag) index = new IndexOfVideos(dag);
  wall = new Wall({
    index, filters, lists, node: parts.wall, foot: parts.more, open: showAlone, counted: tell,
    read: (item) => {
      learn(item.entry, item.card);
      refresh.read(item);
    },
    seen: (item, isSeen) => refresh.seen(item, isSeen),
    failed: (error) => {
      parts.wall.removeAttribute("aria-busy");
      parts.count.textContent = "";
      parts.notice.replaceChildren(notices.failedToRead(error, returnToAll));
    },
  });
  parts.wall.setAttribute("aria-busy", "true");
}

/** Show all after a button was pressed that goes away by it. */
function returnToAll() {
  showAll();
  leadToHeading();
}

function leadToHeading() {
  parts.title.focus({ preventScroll: true });
}

function tell() {
  const { shown, inLists, looked, isOver, total } = wall.tally();
  parts.wall.removeAttribute("aria-busy");
  const isWaitingForSome = filters.needsCards && !isOver;
  parts.count.textContent = filters.needsCards
    ? `${words.count(shown + inLists, "video")}${isWaitingForSome ? ` in the newest ${looked.toLocaleString("en-US")}` : ""}`
    : howMany(shown, inLists, isOver, total);
  if (isOver && shown === 0) {
    parts.notice.replaceChildren(filters.isEmpty && !everything.total
      ? notices.nothingYet()
      : notices.nothingMatches(() => filters.clear()));
  } else if (shown > 0) {
    parts.notice.replaceChildren();
  }
  if (wall.isOver || wall.items.length > 0) beginToAddUp();
}

function howMany(shown, inLists, isOver, total) {
  if (isOver) return words.count(shown + inLists, "video");
  // Airflow counts those of all time only.
  if (filters.since === 0) return words.count(Math.max(total ?? 0, shown) + inLists, "video");
  return `${words.count(shown + inLists, "video")} so far`;
}

async function showAlone(entry) {
  clear();
  document.body.classList.add("one");
  parts.count.textContent = "";
  const back = element("button.button", { type: "button", click: () => {
    filters.read(new URLSearchParams());
    setQuery(new URLSearchParams());
    returnToAll();
  } }, "‹ All videos");
  parts.notice.before(element("div.alone-head", {}, back));
  const parameters = new URLSearchParams(IDS.map((name) => [name, entry[name]]));
  parameters.set("map_index", entry.map_index);
  setQuery(parameters);
  const item = new Item(entry, {
    seen: (which, isSeen) => refresh.seen(which, isSeen),
    read: (which) => {
      parts.notice.replaceChildren();
      refresh.read(which);
    },
  });
  alone = item;
  parts.wall.replaceChildren(item.node);
  back.focus({ preventScroll: true });
  try {
    await findAlone(item);
  } catch (error) {
    item.node.hidden = true;
    parts.notice.replaceChildren(notices.failedToRead(error, () => showAlone(entry)));
  }
}

async function findAlone(item) {
  const [value, task] = await Promise.all([readValue(item.entry, "now"), readTask(item.entry, "now")]);
  if (alone !== item) return;
  if (value) {
    item.node.hidden = false;
    item.learn(value, task);
    return;
  }
  item.node.hidden = true;
  parts.notice.replaceChildren(notices.noSuchVideo(task));
  if (task) lookAgainSoon(item);
}

function lookAgainSoon(item) {
  setTimeout(() => {
    // One answer that fails to come is no reason to look no more.
    if (alone === item) findAlone(item).catch(() => lookAgainSoon(item));
  }, 10_000);
}

// The sums

let isAddingUp = false;
let hasBegun = false;
let isDrawn = false;

function learn(entry, card) {
  known.set(keyOf(entry), { entry, card });
  lists.learn(entry, card);
  if (hasBegun) drawSoon();
}

function beginToAddUp() {
  if (hasBegun) return;
  hasBegun = true;
  addUp(SUMMED_UNASKED);
}

async function addUp(most) {
  if (isAddingUp) return;
  isAddingUp = true;
  const since = Date.now() - DAYS * 24 * 60 * 60 * 1000;
  try {
    await everything.reach(since, "background");
    const due = summed().filter((entry) => !known.has(keyOf(entry))).slice(0, most);
    await Promise.all(due.map(async (entry) => {
      if (known.has(keyOf(entry))) return;
      const value = await readValue(entry, "background");
      if (value && !known.has(keyOf(entry))) learn(entry, cardOf(value));
    }));
  } catch {
    // What could not be read is missing in the sums, and their foot says how much that is.
  } finally {
    isAddingUp = false;
    drawSoon();
  }
}

function summed() {
  const since = Date.now() - DAYS * 24 * 60 * 60 * 1000;
  return everything.entries.filter((entry) => timeOf(entry) >= since);
}

function drawSoon() {
  if (isDrawn) return;
  isDrawn = true;
  setTimeout(() => {
    isDrawn = false;
    const due = summed();
    const read = due.filter((entry) => known.has(keyOf(entry)));
    if (!due.length) return;
    money.show(read.map((entry) => ({ ...known.get(keyOf(entry)), tasks: lists.tasksOf(entry) })), { read: read.length, of: due.length, isReading: isAddingUp });
  }, 300);
}
