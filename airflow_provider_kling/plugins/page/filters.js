// What the person wants to see. It lives in the address, so that it can be kept and sent to others.

import { stateForFilter } from "./card.js";
import { element } from "./element.js";

const NAMES = ["prompt", "dag", "state", "model", "days"];
const DEFAULT_DAYS = 30;
const DAY = 24 * 60 * 60 * 1000;
const PAUSE = 250; // ms without a key before a word counts

export class Filters {
  /**
   * @param {() => void} changed a person wants to see something else.
   * @param {() => void} cleared they wanted to see all, and the button for that is gone.
   */
  constructor(form, changed, cleared) {
    this.form = form;
    this.changed = changed;
    this.cleared = cleared;
    this.timer = null;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", () => this.tell());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      this.clear();
    });
    form.elements.prompt.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.tell(), PAUSE);
    });
  }

  /** Take over what an address says. */
  read(query) {
    for (const name of NAMES) {
      const value = query.get(name) ?? "";
      const field = this.form.elements[name];
      if (field.tagName === "SELECT" && (name === "dag" || name === "model")) offer(field, value);
      field.value = value;
      if (field.tagName === "SELECT" && field.selectedIndex < 0) field.value = "";
    }
    this.before = String(this.toQuery());
    this.showClear();
  }

  toQuery() {
    const query = new URLSearchParams();
    for (const name of NAMES) {
      const value = this.form.elements[name].value.trim();
      if (value) query.set(name, value);
    }
    return query;
  }

  clear() {
    for (const name of NAMES) this.form.elements[name].value = "";
    this.tell();
    this.cleared();
  }

  tell() {
    clearTimeout(this.timer);
    const now = String(this.toQuery());
    if (now === this.before) return;
    this.before = now;
    this.showClear();
    this.changed();
  }

  showClear() {
    this.form.querySelector("[type=reset]").hidden = this.toQuery().size === 0;
  }

  /** Offer a Dag or a model that was seen. */
  offer(name, value) {
    if (value) offer(this.form.elements[name], value);
  }

  get dag() {
    return this.form.elements.dag.value || null;
  }

  get text() {
    return this.form.elements.prompt.value.trim().toLowerCase();
  }

  get isEmpty() {
    return this.toQuery().size === 0;
  }

  /** The oldest moment that counts, epoch milliseconds. */
  get since() {
    const days = this.form.elements.days.value;
    return days === "all" ? 0 : Date.now() - (Number(days) || DEFAULT_DAYS) * DAY;
  }

  /** Whether a video has to be read before one can say if it is wanted. */
  get needsCards() {
    const { prompt, state, model } = this.form.elements;
    return Boolean(prompt.value.trim() || state.value || model.value);
  }

  wants(card) {
    const { state, model } = this.form.elements;
    if (state.value && stateForFilter(card) !== state.value) return false;
    if (card.kind === "list") return !model.value || !card.model || card.model === model.value;
    if (model.value && card.model !== model.value) return false;
    return !this.text || (card.prompt ?? "").toLowerCase().includes(this.text);
  }
}

function offer(select, value) {
  if (!value || [...select.options].some((option) => option.value === value)) return;
  const option = element("option", { value }, value);
  const after = [...select.options].slice(1).find((other) => other.value > value);
  select.insertBefore(option, after ?? null);
}
