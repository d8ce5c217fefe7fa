"""What the page's scripts reckon without a browser: which videos there are, a list's next ones, days of the sums."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_kling.plugins

NODE = shutil.which("node")
PAGE = Path(airflow_provider_kling.plugins.__file__).parent / "page"
AROUND = """
globalThis.location = { pathname: "/kling/videos/", search: "", href: "http://localhost/kling/videos/" };
globalThis.window = {};
window.parent = window;
const told = { timezone: "America/New_York" };
globalThis.localStorage = { getItem: (name) => told[name] ?? null };
globalThis.sessionStorage = { getItem: () => null, setItem() {} };
class Node {
  dataset = {}; style = {}; heard = {}; classList = { add() {}, remove() {}, toggle() {} };
  append() {} prepend() {} replaceChildren() {} setAttribute() {} removeAttribute() {}
  addEventListener(name, hear) { this.heard[name] = hear; }
  querySelector() { return null; }
  contains() { return false; }
  hasAttribute() { return false; }
}
globalThis.document = { createElement: () => new Node(), createElementNS: () => new Node(), addEventListener() {} };
globalThis.IntersectionObserver = class { observe() {} unobserve() {} disconnect() {} };
"""
ROWS = """
let asked = 0;
let rows = [];
let inOrder = (one, other) => Date.parse(other.timestamp) - Date.parse(one.timestamp);
const BEGIN = Date.parse("2026-05-01T00:00:00Z");
function come(many, name, hours) {
  for (let n = 0; n < many; n += 1) {
    rows.push({ dag_id: "d", run_id: name + String(n).padStart(4, "0"), task_id: "t", map_index: -1,
      timestamp: new Date(BEGIN + hours * 3600e3 + n * 1000).toISOString() });
  }
}
globalThis.fetch = async (address) => {
  asked += 1;
  const query = new URL(address, "http://localhost").searchParams;
  const [offset, limit] = [Number(query.get("offset")), Number(query.get("limit"))];
  const told = [...rows].sort(inOrder);
  const answer = { xcom_entries: told.slice(offset, offset + limit), total_entries: told.length };
  return { ok: true, json: async () => answer };
};
const { IndexOfVideos } = await import("./index-of-videos.js");
const index = new IndexOfVideos(null);
"""

pytestmark = pytest.mark.skipif(NODE is None, reason="there is no Node.js here")


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], Any]:
    """Return a function that runs a script beside those of the page, and returns what it says as JSON."""
    for script in PAGE.glob("*.js"):
        shutil.copy(script, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')

    def run(script: str) -> Any:
        (tmp_path / "run.js").write_text(AROUND + script)
        done = subprocess.run(
            [str(NODE), "run.js"], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.parametrize("before", [20, 250])
def test_more_videos_than_a_page_come_between_two_looks(run: Callable[[str], Any], before: int) -> None:
    told = run(
        ROWS
        + f"""
        come({before}, "old", 0);
        await index.more();
        const shown = index.entries.map((entry) => entry.run_id);
        come(300, "new", 24);
        const fresh = (await index.news()).map((entry) => entry.run_id);
        const again = await index.news();
        while (!index.isWhole) await index.more();
        console.log(JSON.stringify({{ shown, fresh, again, all: index.entries.map((entry) => entry.run_id) }}));
        """
    )
    assert told["fresh"] == [f"new{n:04}" for n in reversed(range(300))]
    assert told["again"] == []
    assert told["all"] == told["fresh"] + [f"old{n:04}" for n in reversed(range(before))]
    assert told["shown"] == told["all"][300:400]


def test_one_new_video_of_thousands_is_found_without_reading_them_all(run: Callable[[str], Any]) -> None:
    told = run(
        ROWS
        + """
        come(5000, "old", 0);
        await index.more();
        come(1, "new", 24);
        asked = 0;
        const fresh = await index.news();
        console.log(JSON.stringify({ fresh: fresh.map((entry) => entry.run_id), asked }));
        """
    )
    assert told["fresh"] == ["new0000"]
    assert told["asked"] <= 2


def test_new_videos_are_found_where_airflow_tells_them_in_the_order_of_names(
    run: Callable[[str], Any],
) -> None:
    told = run(
        ROWS
        + """
        inOrder = (one, other) => (one.run_id < other.run_id ? -1 : 1);
        come(250, "a", 0);
        await index.more();
        come(3, "z", 24);
        console.log(JSON.stringify((await index.news()).map((entry) => entry.run_id)));
        """
    )
    assert told == ["z0002", "z0001", "z0000"]


def test_two_clicks_for_more_of_a_list_bring_each_video_once(run: Callable[[str], Any]) -> None:
    told = run(
        """
        globalThis.fetch = async (address) => {
          const query = new URL(address, "http://localhost").searchParams;
          const [offset, limit] = [Number(query.get("offset")), Number(query.get("limit"))];
          const count = Math.max(0, Math.min(limit, 50 - offset));
          const one = (_, n) => ({ kind: "video", item: offset + n, state: "failed" });
          const videos = Array.from({ length: count }, one);
          return { ok: true, json: async () => ({ total: 50, offset, limit, videos }) };
        };
        const { ListView } = await import("./list-view.js");
        const { cardOf } = await import("./card.js");
        const list = new ListView({ dag_id: "d", run_id: "r", task_id: "t", map_index: -1 });
        list.show(cardOf({ kind: "list", state: "completed", total: 50, completed: 50 }));
        await list.loading;
        while (!list.more.hidden) {
          list.more.heard.click();
          list.more.heard.click();
          await list.loading;
        }
        console.log(JSON.stringify(list.views.map((view) => view.card.item)));
        """
    )
    assert told == list(range(50))


@pytest.mark.parametrize("now", ["2026-03-20T04:30:00Z", "2026-03-20T03:30:00Z", "2026-11-10T04:30:00Z"])
def test_the_sums_have_each_of_thirty_days_where_clocks_change(run: Callable[[str], Any], now: str) -> None:
    told = run(
        f"""
        const {{ add }} = await import("./money.js");
        console.log(JSON.stringify(add([], Date.parse("{now}")).byDay.map((day) => day.name)));
        """
    )
    assert len(set(told)) == 30
    assert (
        told[-1]
        == {
            "2026-03-20T04:30:00Z": "2026-03-20",
            "2026-03-20T03:30:00Z": "2026-03-19",
            "2026-11-10T04:30:00Z": "2026-11-09",
        }[now]
    )
    assert ("2026-03-08" in told) == now.startswith("2026-03")


SEVERAL_TASKS = """
const { add } = await import("./money.js");
const { cardOf } = await import("./card.js");
const NOW = Date.parse("2026-05-20T12:00:00Z");
const entry = (dag_id, hour) => (
  { dag_id, run_id: "r", task_id: "t", map_index: -1, timestamp: `2026-05-19T${hour}:00:00Z` });
const over = { kind: "video", state: "completed", task_id: "k-1", submitted_at: "2026-05-19T08:00:00Z" };
const asked = { ...over, state: "submitted", waits: false, request: { prompt: "A reef" }, estimated_cost_usd: 0.3 };
const fetched = { ...over, files: [{ path: "/x.mp4" }], recorded_cost_usd: 0.25 };
const inList = { kind: "list", state: "completed", submitted_at: "2026-05-19T07:55:00Z",
  timestamp: "2026-05-19T09:00:00Z", total: 2, completed: 2, estimated_cost_usd: 0.6 };
let asksFor = [];
globalThis.fetch = async (address) => {
  if (address.endsWith("/kling-tasks")) asksFor.push(address.split("/")[4]);
  return { ok: true, json: async () => ({ stored: ["k-1"], others: ["k-2"], videos: [], total: 0 }) };
};
const { Lists } = await import("./lists.js");
const { Wall } = await import("./wall.js");
const filters = { dag: null, text: "", needsCards: false, offer() {}, wants: () => true };
const wallOf = (parts) => new Wall({ index: {}, filters, lists: new Lists(() => {}), node: new Node(), foot: new Node(),
  open() {}, counted() {}, seen() {}, failed() {}, ...parts });
const byDag = (known) => add(known, NOW).byDag.map(({ name, recorded, estimated, videos }) => (
  [name, recorded, estimated, videos]));
"""


def test_what_a_video_cost_is_credited_to_the_dag_that_asked_for_it(run: Callable[[str], Any]) -> None:
    told = run(
        SEVERAL_TASKS
        + """
        const payer = { entry: entry("asks", "09"), card: cardOf(asked) };
        const other = { entry: entry("fetches", "10"), card: cardOf(fetched) };
        console.log(JSON.stringify([byDag([other, payer]), byDag([payer, other])]));
        """
    )
    assert told == [[["asks", 0.25, 0, 1]]] * 2


def test_where_no_task_is_known_to_have_asked_the_first_that_told_of_the_video_is_credited(
    run: Callable[[str], Any],
) -> None:
    told = run(
        SEVERAL_TASKS
        + """
        const [one, other] = ["09", "10"].map((hour) => ({ entry: entry(`at-${hour}`, hour), card: cardOf(fetched) }));
        console.log(JSON.stringify([byDag([other, one]), byDag([one, other])]));
        """
    )
    assert told == [[["at-09", 0.25, 0, 1]]] * 2


@pytest.mark.parametrize("order", ["asked, fetched", "fetched, asked"])
def test_the_wall_tells_the_sums_what_each_task_left_and_not_what_it_shows(
    run: Callable[[str], Any], order: str
) -> None:
    told = run(
        SEVERAL_TASKS
        + f"""
        const known = new Map();
        const wall = wallOf({{ read: ({{ entry, card }}) => known.set(entry.dag_id, {{ entry, card }}) }});
        const dags = new Map([[asked, entry("asks", "11")], [fetched, entry("fetches", "10")]]);
        for (const value of [{order}]) wall.make(dags.get(value)).learn(value, null);
        console.log(JSON.stringify(byDag([...known.values()])));
        """
    )
    assert told == [["asks", 0.25, 0, 1]]


def test_a_lists_video_that_another_task_fetched_counts_once(run: Callable[[str], Any]) -> None:
    told = run(
        SEVERAL_TASKS
        + """
        const tasks = new Map([["k-1", true], ["k-2", true]]);
        const list = { entry: entry("makes", "09"), card: cardOf(inList), tasks };
        const other = { entry: entry("fetches", "10"), card: cardOf(fetched), tasks: null };
        const fromElsewhere = { ...other, card: cardOf({ ...fetched, task_id: "k-3" }) };
        const uncounted = { ...list, card: cardOf({ kind: "list", state: "failed" }) };
        console.log(JSON.stringify([
          byDag([other, list]), byDag([list, other]), byDag([other, fromElsewhere, list]), byDag([other, uncounted]),
          byDag([other, { ...list, tasks: null }]),
        ]));
        """
    )
    of_list, of_fetched = ["makes", 0, 0.6, 2], ["fetches", 0.25, 0, 1]
    assert told == [[of_list], [of_list], [of_list, of_fetched], [of_fetched], [of_list, of_fetched]]


def test_a_list_is_asked_for_its_kling_tasks_once_and_only_where_a_video_may_be_of_it(
    run: Callable[[str], Any],
) -> None:
    told = run(
        SEVERAL_TASKS
        + """
        const rest = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
        async function asks(...values) {
          asksFor = [];
          let changes = 0;
          const lists = new Lists(() => { changes += 1; });
          values.forEach((value, at) => lists.learn(entry(`d${at}`, "10"), cardOf(value)));
          await rest(400);
          values.forEach((value, at) => lists.learn(entry(`d${at}`, "10"), cardOf(value)));
          await rest(400);
          const tasks = values.flatMap((_, at) => [...(lists.tasksOf(entry(`d${at}`, "10")) ?? [])]);
          return { asks: asksFor.length, changes, tasks };
        }
        console.log(JSON.stringify([
          await asks(inList, fetched),
          await asks(inList),
          await asks(inList, fetched, asked),
          await asks({ ...inList, state: "submitted" }, fetched),
          await asks(inList, { ...fetched, submitted_at: "2026-05-18T08:00:00Z" }),
          await asks(inList, { ...fetched, submitted_at: "2026-05-19T20:00:00Z" }),
          await asks(inList, { ...fetched, submitted_at: null }),
        ]));
        """
    )
    nothing = {"asks": 0, "changes": 0, "tasks": []}
    its = {"asks": 1, "changes": 1, "tasks": [["k-2", False], ["k-1", True]]}
    assert told == [its, nothing, nothing, nothing, nothing, nothing, its]


def test_a_list_that_ran_again_is_asked_again(run: Callable[[str], Any]) -> None:
    told = run(
        SEVERAL_TASKS
        + """
        const lists = new Lists(() => {});
        const rest = (ms) => new Promise((resolve) => { setTimeout(resolve, ms); });
        lists.learn(entry("fetches", "10"), cardOf(fetched));
        for (const timestamp of ["2026-05-19T09:00:00Z", "2026-05-19T09:00:00Z", "2026-05-19T11:00:00Z"]) {
          lists.learn(entry("makes", "09"), cardOf({ ...inList, timestamp }));
          await rest(400);
        }
        console.log(JSON.stringify(asksFor.length));
        """
    )
    assert told == 2


def test_a_lists_video_that_another_task_tells_of_is_shown_where_it_can_be_played(
    run: Callable[[str], Any],
) -> None:
    told = run(
        SEVERAL_TASKS
        + """
        async function shown(value, wants = () => true) {
          const lists = new Lists(() => wall.judgeStrays());
          const read = ({ entry, card }) => lists.learn(entry, card);
          const wall = wallOf({ lists, filters: { ...filters, wants }, read });
          const items = [wall.make(entry("other", "10")), wall.make(entry("list", "09"))];
          wall.items.push(...items);
          items[0].learn(value, null);
          items[1].learn(inList, null);
          await new Promise((resolve) => { setTimeout(resolve, 400); });
          return items.map((item) => !item.node.hidden);
        }
        const waitedFor = { ...over, task_id: "k-2" };
        console.log(JSON.stringify({
          storedByBoth: await shown(fetched),
          storedByTheOther: await shown({ ...fetched, task_id: "k-2" }),
          waitedFor: await shown(waitedFor),
          ofNoList: await shown({ ...fetched, task_id: "k-3" }),
          listNotWanted: await shown(fetched, (card) => card.kind === "video"),
        }));
        """
    )
    assert told == {
        "storedByBoth": [False, True],
        "storedByTheOther": [True, True],
        "waitedFor": [False, True],
        "ofNoList": [True, True],
        "listNotWanted": [True, False],
    }


LIVE = """
let focused = null;
class Live extends Node {
  children = []; parent = null; attributes = {}; style = {};
  append(...nodes) {
    for (const node of nodes) {
      if (!(node instanceof Live)) continue;
      node.remove();
      node.parent = this;
      this.children.push(node);
    }
  }
  remove() {
    if (!this.parent) return;
    this.parent.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
    if (this.contains(focused)) focused = null; // as a browser does, also where it is put back
  }
  replaceChildren(...nodes) {
    [...this.children].forEach((node) => node.remove());
    this.append(...nodes);
  }
  get isConnected() { return this === document.body || Boolean(this.parent?.isConnected); }
  setAttribute(name, value) {
    if (name === "data-control") this.dataset.control = value;
  }
  contains(other) { return other === this || this.children.some((node) => node.contains(other)); }
  querySelectorAll(selector) {
    const [, name] = /^\\[data-control(?:="(.*)")?\\]$/.exec(selector);
    return this.children.flatMap((node) => [
      ...(node.dataset.control && (name ?? node.dataset.control) === node.dataset.control ? [node] : []),
      ...node.querySelectorAll(selector)]);
  }
  querySelector(selector) { return this.querySelectorAll(selector)[0] ?? null; }
  focus() { if (this.isConnected) focused = this; }
  pause() {} load() {}
}
Object.assign(document, { body: new Live(), createElement: () => new Live(), createElementNS: () => new Live() });
Object.defineProperty(document, "activeElement", { get: () => focused ?? document.body });
const { Item } = await import("./item.js");
const ids = { dag_id: "d", run_id: "r", task_id: "t", map_index: -1 };
const waiting = { kind: "video", state: "submitted", task_id: "k-1", submitted_at: "2026-05-19T08:00:00Z",
  request: { prompt: "A reef ".repeat(99) } };
const made = { ...waiting, state: "completed", files: [{ path: "/x.mp4" }] };
const two = { ...waiting, state: "completed", files: [{ path: "/x.mp4" }, { path: "/y.mp4" }] };
const list = { kind: "list", state: "submitted", total: 2, submitted_at: "2026-05-19T08:00:00Z" };
globalThis.fetch = async () => ({ ok: true, json: async () => ({ videos: [], total: 0 }) });
function shown(card) {
  const item = new Item(ids, { open() {} });
  document.body.append(item.node);
  item.learn(card, null);
  return item;
}
const at = () => document.activeElement.dataset.control ?? null;
"""


@pytest.mark.parametrize(
    ("before", "after", "control"),
    [
        *(("waiting", "made", control) for control in ("dag", "task", "run", "prompt", "alone")),
        *(("made", "two", control) for control in ("play", "download")),
        ("two", "{ ...two, model: 'kling-v3-omni' }", "which"),
        *(("list", "{ ...list, completed: 1 }", control) for control in ("dag", "alone")),
        ("waiting", "list", "run"),
    ],
)
def test_a_card_that_is_drawn_anew_leaves_the_keyboard_where_it_is(
    run: Callable[[str], Any], before: str, after: str, control: str
) -> None:
    told = run(
        LIVE
        + f"""
        const item = shown({before});
        item.node.querySelector('[data-control="{control}"]').focus();
        const first = at();
        item.learn({after}, null);
        console.log(JSON.stringify([first, at(), document.activeElement.isConnected]));
        """
    )
    assert told == [control, control, True]


def test_where_what_had_the_focus_is_gone_the_first_control_of_the_card_has_it(
    run: Callable[[str], Any],
) -> None:
    told = run(
        LIVE
        + """
        const item = shown(made);
        item.node.querySelector('[data-control="download"]').focus();
        item.learn(waiting, null);
        const first = item.node.querySelector("[data-control]");
        console.log(JSON.stringify([document.activeElement === first, document.activeElement === document.body]));
        """
    )
    assert told == [True, False]


def test_a_video_of_a_list_that_has_the_focus_keeps_it_when_the_list_is_drawn_anew(
    run: Callable[[str], Any],
) -> None:
    told = run(
        LIVE
        + """
        const item = shown(list);
        const { cardOf } = await import("./card.js");
        item.view.add({ ...made, item: 0 });
        const download = item.view.views[0].node.querySelector('[data-control="download"]');
        download.focus();
        item.learn({ ...list, completed: 1 }, null);
        console.log(JSON.stringify([document.activeElement === download]));
        """
    )
    assert told == [True]


def test_a_card_that_is_drawn_anew_takes_the_focus_from_nothing_else(run: Callable[[str], Any]) -> None:
    told = run(
        LIVE
        + """
        const [item, other] = [shown(waiting), shown(waiting)];
        item.learn(made, null);
        const ofNobody = document.activeElement === document.body;
        const link = other.node.querySelector('[data-control="dag"]');
        link.focus();
        item.learn(two, null);
        console.log(JSON.stringify([ofNobody, document.activeElement === link]));
        """
    )
    assert told == [True, True]


@pytest.mark.parametrize("is_in_the_frame", [True, False])
def test_a_card_in_airflows_frame_takes_the_focus_from_nothing_outside(
    run: Callable[[str], Any], is_in_the_frame: bool
) -> None:
    told = run(
        """
        const airflow = { activeElement: {} };
        globalThis.window = { frameElement: { sandbox: { contains: () => true } }, parent: { document: airflow } };
        """
        + LIVE
        + f"""
        const item = shown(waiting);
        item.node.querySelector('[data-control="run"]').focus();
        if ({json.dumps(is_in_the_frame)}) airflow.activeElement = window.frameElement;
        item.learn(made, null);
        console.log(JSON.stringify(at()));
        """
    )
    assert told == ("run" if is_in_the_frame else None)
