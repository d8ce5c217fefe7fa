// The sums at a glance: a line, a chart of days, a few Dags, and a table that says the same in words.

import { drawing, element } from "./element.js";
import { add, DAYS, total } from "./money.js";
import * as words from "./words.js";

const HEIGHT = 120;
const FOOT = 18;
const SIDE = 44;
const MOST_DAGS = 5;

export class MoneyView {
  constructor(node, countRest) {
    this.node = node;
    this.sums = null;
    this.line = element("span.money-sum", {});
    this.state = element("span.money-state.dim", { role: "status" });
    this.rest = element("button.link", { type: "button", hidden: true, click: countRest });
    this.chart = element("div.chart", {});
    this.dags = element("div.money-dags", {});
    this.table = element("div.unseen", {});
    node.append(
      element("summary", {}, element("h2", {}, `Spent in ${DAYS} days`), this.line),
      element("div.money-body", {},
        element("div.money-days", {}, this.chart, legend()), this.dags, this.table),
      element("p.money-foot", {}, this.state, " ", this.rest),
    );
    node.open = innerWidth >= 640;
    new ResizeObserver(() => this.draw()).observe(this.chart);
  }

  /** @param {{read: number, of: number, isReading: boolean}} progress of the videos that are added up. */
  show(known, progress) {
    this.sums = add(known);
    this.node.hidden = false;
    const { all } = this.sums;
    this.line.replaceChildren(
      element("strong", {}, words.usd(total(all))),
      element("span", {}, `${words.usd(all.recorded)} recorded`),
      element("span", {}, `${words.usd(all.estimated)} estimated`),
      element("span.dim", {}, words.count(all.videos, "video")));
    const left = progress.of - progress.read;
    this.state.textContent = left > 0
      ? `${progress.isReading ? "Adding up: " : ""}${words.count(progress.read, "task")} of ${progress.of.toLocaleString("en-US")}.` : "";
    this.rest.hidden = left <= 0 || progress.isReading;
    this.rest.textContent = `Add up the other ${left.toLocaleString("en-US")}`;
    this.draw();
    this.dags.replaceChildren(...this.bars());
    this.table.replaceChildren(table(this.sums));
  }

  draw() {
    const width = Math.floor(this.chart.clientWidth);
    if (!this.sums || width < 50) return;
    this.chart.replaceChildren(chartOf(this.sums, width));
  }

  bars() {
    const { byDag } = this.sums;
    if (!byDag.length) return [element("p.dim", {}, "Nothing was spent yet.")];
    const most = Math.max(...byDag.map(total)) || 1;
    const shown = byDag.slice(0, MOST_DAGS);
    const rows = shown.map((dag) => element("li", {},
      element("span.dag-name", { title: dag.name }, dag.name), element("span.dag-sum", {}, words.usd(total(dag))),
      drawing("svg.dag-bar", { "aria-hidden": "true", height: 6, width: "100%" },
        drawing("rect.recorded", { width: `${(100 * dag.recorded) / most}%`, height: 6, rx: 2 }),
        drawing("rect.estimated", { x: `${(100 * dag.recorded) / most}%`, width: `${(100 * dag.estimated) / most}%`, height: 6, rx: 2 }))));
    const others = byDag.slice(MOST_DAGS);
    if (others.length) {
      const rest = others.reduce((sum, dag) => sum + total(dag), 0);
      rows.push(element("li.dim", {}, element("span.dag-name", {}, words.count(others.length, "other Dag")),
        element("span.dag-sum", {}, words.usd(rest))));
    }
    return [element("ul", { "aria-hidden": "true" }, ...rows)];
  }
}

function chartOf({ byDay, all }, width) {
  const most = roundUp(Math.max(...byDay.map(total), 0.01));
  const [across, down] = [width - SIDE, HEIGHT - FOOT];
  const step = across / byDay.length;
  const thick = Math.max(2, Math.min(28, step * 0.72));
  const high = (amount) => (amount / most) * (down - 8);
  const svg = drawing("svg", { role: "img", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`,
    "aria-label": `Spent by day in the last ${DAYS} days: ${words.usd(total(all))} in all. The table that follows has the days.` });
  for (const part of [0, 0.5, 1]) {
    const y = down - high(most * part);
    svg.append(drawing("line.grid", { x1: SIDE, x2: width, y1: y, y2: y }),
      drawing("text.scale", { x: SIDE - 6, y: y + 4, "text-anchor": "end" }, words.usd(most * part)));
  }
  byDay.forEach((one, at) => {
    const x = SIDE + at * step + (step - thick) / 2;
    const bars = drawing("g", {}, drawing("title", {}, `${one.name}: ${words.usd(one.recorded)} recorded, `
      + `${words.usd(one.estimated)} estimated, ${words.count(one.videos, "video")}`),
      drawing("rect.hit", { x: SIDE + at * step, y: 0, width: step, height: down }));
    if (one.recorded) bars.append(bar("recorded", x, down - high(one.recorded), thick, high(one.recorded)));
    if (one.estimated) {
      bars.append(bar("estimated", x, down - high(total(one)), thick, high(one.estimated)));
    }
    svg.append(bars);
    if (at === 0 || at === byDay.length - 1 || (width > 420 && at === Math.floor(byDay.length / 2))) {
      const anchor = at === 0 ? "start" : at === byDay.length - 1 ? "end" : "middle";
      const where = at === 0 ? SIDE : at === byDay.length - 1 ? width : x + thick / 2;
      svg.append(drawing("text.scale", { x: where, y: HEIGHT - 4, "text-anchor": anchor }, one.name.slice(5)));
    }
  });
  return svg;
}

function bar(kind, x, y, width, height) {
  return drawing(`rect.${kind}`, { x, y, width, height: Math.max(1, height), rx: Math.min(2, width / 2) });
}

function legend() {
  const key = (kind, text) => element("li", {},
    drawing("svg", { width: 12, height: 12, "aria-hidden": "true" }, drawing(`rect.${kind}`, { x: 1, y: 1, width: 10, height: 10, rx: 2 })), text);
  return element("ul.legend", {}, key("recorded", "recorded by the service"), key("estimated", "estimated so far"));
}

function table({ byDay, byDag }) {
  const rows = (of) => of.filter((one) => one.videos).map((one) => element("tr", {},
    element("th", { scope: "row" }, one.name), element("td", {}, words.usd(one.recorded)),
    element("td", {}, words.usd(one.estimated)), element("td", {}, String(one.videos))));
  const heads = (first) => element("tr", {}, ...[first, "Recorded, USD", "Estimated, USD", "Videos"]
    .map((head) => element("th", { scope: "col" }, head)));
  return element("div", {},
    element("table", {}, element("caption", {}, `Spent by day, last ${DAYS} days; days without a video are left out`),
      element("thead", {}, heads("Day")), element("tbody", {}, ...rows(byDay))),
    element("table", {}, element("caption", {}, `Spent by Dag, last ${DAYS} days`),
      element("thead", {}, heads("Dag")), element("tbody", {}, ...rows(byDag))));
}

function roundUp(amount) {
  const power = 10 ** Math.floor(Math.log10(amount));
  return [1, 2, 5, 10].map((by) => by * power).find((step) => step >= amount - 1e-9);
}
