// Which Kling tasks are those of lists: a task that waited for one of them, or fetched it, tells of it a second time.

import { keyOf, readKlingTasksOf } from "./airflow.js";

const PAUSE = 300; // ms, in which the card of the task that asked may come as well
const CLOCKS = 60 * 60 * 1000; // by which the clocks of a worker and of the service may differ, ms

export class Lists {
  /** @param {() => void} changed the Kling tasks of one more list are known. */
  constructor(changed) {
    this.changed = changed;
    this.lists = new Map();
    this.strays = new Map();
    this.asked = new Set();
    this.timer = null;
  }

  /** What a task left. */
  learn(entry, card) {
    const key = keyOf(entry);
    if (card.kind === "list") {
      // While it is going on, its results are not there to be read; when it ran again they are others.
      if (card.isWaiting) this.lists.delete(key);
      else if (this.lists.get(key)?.card.toldAt !== card.toldAt) this.lists.set(key, { entry, card, tasks: null, isRead: false });
    } else if (card.klingTaskId) {
      if (card.hasAsked) this.asked.add(card.klingTaskId);
      else this.strays.set(key, card);
    }
    this.timer ??= setTimeout(() => {
      this.timer = null;
      this.look();
    }, PAUSE);
  }

  /** Kling task ids of a list, each with whether the list stored its video; null where they are not known. */
  tasksOf(entry) {
    return this.lists.get(keyOf(entry))?.tasks ?? null;
  }

  /** Read the lists that a video may be of which nobody is known to have asked for. */
  async look() {
    const strays = [...this.strays.values()].filter((card) => !this.asked.has(card.klingTaskId));
    const due = [...this.lists.values()].filter((list) => !list.isRead && strays.some((card) => mayBeOf(list.card, card)));
    await Promise.all(due.map(async (list) => {
      list.isRead = true;
      try {
        list.tasks = await readKlingTasksOf(list.entry);
        this.changed();
      } catch {
        // Its results are gone or cannot be read now: what other tasks tell of its videos stands beside it.
      }
    }));
  }
}

/** Whether a video can be one of a list: it was asked for after the list's first one and before the list was over. */
function mayBeOf(list, video) {
  const made = Date.parse(video.submittedAt);
  // What is not known is no time and compares with nothing.
  return !(made < Date.parse(list.submittedAt) - CLOCKS || made > Date.parse(list.toldAt) + CLOCKS);
}
