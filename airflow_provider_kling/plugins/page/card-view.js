// One video as a person sees it.

import { airflowPages, fileAddress } from "./airflow.js";
import { isExpired, shortened } from "./card.js";
import { element, icon } from "./element.js";
import { leadAway, leadIntoAirflow, letDownload } from "./frame.js";
import { Player } from "./player.js";
import * as words from "./words.js";

const ICONS = {
  failed: ["M12 8v5", "M12 16.5v.01", "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18"],
  waiting: ["M12 7v5l3 2", "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18"],
  none: ["M4 5h16v14H4z", "M4 19L20 5"],
  expired: ["M6 3h12", "M6 21h12", "M7 3v3l5 6l5-6V3", "M7 21v-3l5-6l5 6v3"],
  download: ["M12 4v11", "M7 11l5 5l5-5", "M5 20h14"],
  away: ["M14 4h6v6", "M20 4l-9 9", "M18 14v5H5V6h5"],
  open: ["M4 9V4h5", "M15 4h5v5", "M20 15v5h-5", "M9 20H4v-5"],
};
const EXPIRES_SOON = 7 * 24 * 60 * 60 * 1000;
let ids = 0;

export class CardView {
  /**
   * @param {object} entry ids of the task instance.
   * @param {(entry: object) => void} open shows this video alone; without it there is no such button.
   */
  constructor(entry, open = null) {
    this.entry = entry;
    this.open = open;
    this.player = null;
    this.clock = null;
    this.trouble = null;
    this.download = null;
    this.shown = 0;
    this.isVisible = false;
    this.titleId = `video-${(ids += 1)}`;
    this.node = element("article.card", { "aria-labelledby": this.titleId, "aria-busy": "true" });
    this.node.append(
      element("div.stage.empty", {}),
      element("div.body", {}, element("h2.prompt.dim", { id: this.titleId }, entry.task_display_name ?? entry.task_id),
        this.place(null)),
    );
  }

  onVisible() {
    this.isVisible = true;
    this.player?.wake();
  }

  onHidden() {
    this.isVisible = false;
    this.player?.sleep();
  }

  /** Show what is known. A player whose video is still the same goes on playing. */
  show(card) {
    this.card = card;
    this.node.removeAttribute("aria-busy");
    this.node.dataset.state = card.state;
    this.node.dataset.klingTask = card.klingTaskId ?? "";
    const stage = this.stage(card);
    this.node.replaceChildren(stage, this.body(card));
    if (this.isVisible) this.player?.wake();
  }

  /** Show another of the results. Only what differs is made anew: whoever chose keeps the focus. */
  choose(at) {
    this.shown = at;
    this.trouble?.remove();
    this.node.querySelector(".stage").replaceWith(this.stage(this.card));
    const before = this.download;
    before.replaceWith(this.downloadLink(this.card));
    if (this.isVisible) this.player?.wake();
  }

  showError(message, again) {
    this.node.removeAttribute("aria-busy");
    this.node.replaceChildren(
      blank("failed", "Could not be read"),
      element("div.body", {}, element("h2.prompt.dim", { id: this.titleId }, this.entry.task_id),
        element("p.reason", {}, message), this.place(null),
        element("p.actions", {},
          element("button.button", { type: "button", "data-control": "again", click: again }, "Try again"))),
    );
  }

  tick(now) {
    if (this.clock) this.clock.textContent = words.elapsed((now - this.since) / 1000);
  }

  stage(card) {
    this.clock = null;
    const source = this.source(card);
    if (!source) {
      this.player?.end();
      this.player = null;
      return this.stageWithout(card);
    }
    if (this.player?.address !== source.address) {
      this.player?.end();
      const label = shortened(card.prompt ?? this.entry.task_id);
      this.player = new Player(source.address, { ...source, label, onBroken: (message) => this.broken(message) });
    }
    const length = card.seconds === null ? null : element("span.length", { "aria-hidden": "true" }, words.elapsed(card.seconds));
    return element("div.stage", {}, this.player.node, length);
  }

  stageWithout(card) {
    if (card.isWaiting) {
      const since = Date.parse(card.submittedAt ?? card.toldAt);
      if (!card.waits) return blank("waiting", "Asked for", "Nothing has told of its end yet");
      const stage = blank("waiting", card.state === "queued" ? "The service is busy" : "Being made");
      stage.classList.add("waits");
      if (!Number.isNaN(since)) {
        this.since = since;
        this.clock = element("span.clock", {}, words.elapsed((Date.now() - since) / 1000));
        stage.append(this.clock);
      }
      return stage;
    }
    if (card.state === "completed") {
      return card.expiresAt
        ? blank("expired", `Expired on ${words.day(card.expiresAt)}`, "The service keeps videos for 7 days")
        : blank("none", "Not stored");
    }
    return blank(card.state === "dry_run" || card.state === "not_submitted" ? "none" : "failed",
      words.STATE_WORDS[card.state] ?? card.state);
  }

  source(card) {
    if (card.files.length) {
      const at = Math.min(this.shown, card.files.length - 1);
      return { address: fileAddress(this.entry, at, { item: card.item }), isStored: true };
    }
    return card.link && !isExpired(card) ? { address: card.link, isStored: false } : null;
  }

  broken(message) {
    this.player = null;
    this.node.querySelector(".stage")?.replaceWith(blank("none", "Cannot be played"));
    this.trouble = element("p.reason", { role: "status" }, message);
    this.node.querySelector(".place")?.before(this.trouble);
  }

  body(card) {
    return element("div.body", {},
      ...this.prompt(card),
      card.error ? reasonOf(card.error) : null,
      this.place(card),
      facts(card),
      cost(card),
      lasting(card),
      this.actions(card));
  }

  prompt(card) {
    if (!card.prompt) {
      const title = card.item === null ? this.entry.task_display_name ?? this.entry.task_id : `Video ${card.item + 1}`;
      return [element("h2.prompt.dim", { id: this.titleId }, title)];
    }
    const short = shortened(card.prompt);
    const title = element("h2.prompt", { id: this.titleId }, short);
    if (short === card.prompt.trim()) return [title];
    const named = { type: "button", "data-control": "prompt", "aria-expanded": "false" };
    const toggle = element("button.link", { ...named, click: () => {
      const whole = toggle.getAttribute("aria-expanded") === "false";
      toggle.setAttribute("aria-expanded", String(whole));
      toggle.textContent = whole ? "Less" : "Whole prompt";
      title.textContent = whole ? card.prompt : short;
      title.classList.toggle("whole", whole);
    } }, "Whole prompt");
    return [title, toggle];
  }

  place(card) {
    const pages = airflowPages(this.entry);
    const link = (control, href, text, title) => (
      leadIntoAirflow(element("a", { href, title, "data-control": control }, text)));
    const index = this.entry.map_index >= 0 ? `[${this.entry.map_index}]` : "";
    const at = card?.submittedAt ?? card?.completedAt ?? card?.toldAt ?? this.entry.timestamp;
    const when = at ? element("time", { datetime: at, title: words.moment(at) }, words.ago(at)) : null;
    return element("div.place", {},
      element("p.task", {},
        link("dag", pages.dag, this.entry.dag_display_name ?? this.entry.dag_id, `Dag ${this.entry.dag_id}`),
        element("span.sep", { "aria-hidden": "true" }, "›"),
        link("task", pages.task, `${this.entry.task_display_name ?? this.entry.task_id}${index}`,
          `Task ${this.entry.task_id}${index}`)),
      element("p.run", {}, link("run", pages.run, this.entry.run_id, `Run ${this.entry.run_id}`), when));
  }

  actions(card) {
    const what = shortened(card.prompt ?? this.entry.task_id);
    const nodes = [];
    if (card.files.length) {
      nodes.push(this.downloadLink(card));
    } else if (card.link && !isExpired(card)) {
      nodes.push(leadAway(element("a.button", { href: card.link, "data-control": "away",
        "aria-label": `Open at the service: ${what}` },
        icon(...ICONS.away), "Open at the service")));
    }
    if (card.files.length > 1) nodes.push(this.choice(card));
    if (this.open) nodes.push(this.aloneButton(what));
    return nodes.length ? element("p.actions", {}, ...nodes) : null;
  }

  downloadLink(card) {
    const at = Math.min(this.shown, card.files.length - 1);
    const address = fileAddress(this.entry, at, { item: card.item, download: true });
    const bytes = card.files[at].size_bytes;
    this.download = letDownload(element("a.button", { href: address, "data-control": "download",
      "aria-label": `Download: ${shortened(card.prompt ?? this.entry.task_id)}` },
      icon(...ICONS.download), "Download", bytes ? element("span.dim", {}, words.size(bytes)) : null));
    return this.download;
  }

  aloneButton(what) {
    return element("button.button.quiet.alone", { type: "button", "data-control": "alone",
      "aria-label": `Show alone: ${what}`, title: "Show this alone", click: () => this.open(this.entry) }, icon(...ICONS.open));
  }

  choice(card) {
    const select = element("select", { "aria-label": "Which of the results", "data-control": "which",
      change: () => this.choose(Number(select.value)) }, ...card.files.map((_, at) => element("option", { value: at }, `${at + 1} of ${card.files.length}`)));
    select.value = String(this.shown);
    return select;
  }
}

/** What is known of a video in small words, beside each other. */
function facts(card) {
  const told = [
    card.model && [card.model, "model"],
    card.mode && [card.mode, "mode"],
    card.seconds !== null && [words.lasted(card.seconds), "length"],
    card.sound !== null && [card.sound ? "sound" : "no sound", "sound"],
    card.files[0]?.width && [`${card.files[0].width} × ${card.files[0].height}`, "pixels"],
    card.generationSeconds !== null && [`made in ${words.lasted(card.generationSeconds)}`, "generation"],
  ].filter(Boolean);
  return told.length ? element("ul.facts", {}, ...told.map(([text, kind]) => element("li", { "data-fact": kind }, text))) : null;
}

export function cost(card) {
  const { recorded, estimated } = card;
  if (recorded === null && estimated === null) return null;
  if (card.state === "dry_run") {
    return element("p.cost", {}, `Would cost ${words.usd(estimated)}`, element("span.how", {}, "estimated"));
  }
  if (card.state === "failed" && card.kind === "video") return element("p.cost", {}, "Not billed");
  if (card.kind === "list" && card.isWaiting) {
    const soFar = recorded ? element("span.dim", {}, `(${words.usd(recorded)} of it recorded so far)`) : null;
    return element("p.cost.estimated", {}, `≈ ${words.usd(estimated ?? recorded)}`, element("span.how", {}, "estimated"), soFar);
  }
  if (recorded === null) {
    return element("p.cost.estimated", {}, `≈ ${words.usd(estimated)}`, element("span.how", {}, "estimated"));
  }
  const differs = estimated !== null && words.usd(estimated) !== words.usd(recorded);
  const before = !differs ? null : element("span.dim", {}, `(estimated ${words.usd(estimated)})`);
  return element("p.cost.recorded", {}, words.usd(recorded), element("span.how", {}, "recorded"), before);
}

function lasting(card) {
  if (card.state !== "completed" || card.files.length) return null;
  const how = element("span", {}, "Set ", element("code", {}, "output_path"), " on the operator to keep the next one.");
  if (!card.link || isExpired(card)) {
    return element("p.lasting", {},
      card.expiresAt ? `The service's link expired on ${words.moment(card.expiresAt)}; the file was not stored. `
        : "The file was not stored. ", how);
  }
  if (card.expiresAt === null) return element("p.lasting", {}, "Not stored. ", how);
  const soon = Date.parse(card.expiresAt) - Date.now() < EXPIRES_SOON;
  return element("p.lasting", {}, "Not stored: the link expires ",
    element("time", { datetime: card.expiresAt, title: words.moment(card.expiresAt) },
      soon ? words.ahead(card.expiresAt) : `on ${words.day(card.expiresAt)}`), ". ", how);
}

const LONG_REASON = 160;

export function reasonOf(text) {
  if (text.length <= LONG_REASON) return element("p.reason", {}, text);
  const short = `${text.slice(0, LONG_REASON).replace(/[\s.,;:]+$/, "")}…`;
  const told = element("span", {}, short);
  const named = { type: "button", "data-control": "reason", "aria-expanded": "false" };
  const toggle = element("button.link", { ...named, click: () => {
    const whole = toggle.getAttribute("aria-expanded") === "false";
    toggle.setAttribute("aria-expanded", String(whole));
    toggle.textContent = whole ? "Less" : "Whole reason";
    told.textContent = whole ? text : short;
  } }, "Whole reason");
  return element("p.reason", {}, told, " ", toggle);
}

function blank(kind, title, text = null) {
  return element(`div.stage.blank.${kind}`, {}, icon(...ICONS[kind]), element("strong", {}, title),
    text ? element("span", {}, text) : null);
}
