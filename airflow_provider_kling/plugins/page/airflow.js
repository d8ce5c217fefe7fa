// What the page asks: Airflow's REST API with the person's own session, and the plugin's routes. Rights are Airflow's.

import { base } from "./frame.js";
import { takeTurn } from "./turns.js";

const API = `${base}/api/v2`;
const PAGE = 100; // Airflow's own limit, unless its [api] maximum_page_limit is lower
const XCOM_KEY = "kling_video";
const KEPT = "kling:";
// What these say does not change any more, unless the task runs again, which leaves an XCom with another time.
const OVER = new Set(["completed", "failed", "undelivered", "dry_run"]);

/** Airflow refused a question, or could not be reached (status 0). */
export class AskingError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The ids by which Airflow knows a task instance, as one string. */
export function keyOf(entry) {
  return [entry.dag_id, entry.run_id, entry.task_id, entry.map_index].join("\n");
}

/** One page of the XComs that our operators left, without their values. */
export async function listEntries(dagId, offset, urgency) {
  const path = `${taskPath({ dag_id: dagId, run_id: "~", task_id: "~" })}/xcomEntries`;
  // Airflow 3.1 knows no order_by, and takes no notice of it.
  const parameters = new URLSearchParams({ xcom_key: XCOM_KEY, limit: PAGE, offset, order_by: "-timestamp" });
  const answer = await ask(`${path}?${parameters}`, urgency);
  return { entries: answer.xcom_entries, total: answer.total_entries };
}

/**
 * What a task left about its video; null where it left nothing (or no longer, as it runs again).
 *
 * @param {object} entry ids of the task instance; with a `timestamp` the value may come from this tab's memory.
 * @param {() => boolean} isWanted see takeTurn.
 */
export async function readValue(entry, urgency, isWanted) {
  const kept = entry.timestamp ? recall(entry) : null;
  if (kept) return kept;
  const parameters = new URLSearchParams({ map_index: entry.map_index });
  try {
    const answer = await ask(`${taskPath(entry)}/xcomEntries/${XCOM_KEY}?${parameters}`, urgency, isWanted);
    const value = parsed(answer.value);
    const told = value && typeof value === "object" ? { ...value, timestamp: answer.timestamp } : null;
    if (told && OVER.has(told.state)) remember({ ...entry, timestamp: answer.timestamp }, told);
    return told;
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** The task instance as Airflow sees it; null where there is none. */
export async function readTask(entry, urgency) {
  const mapped = entry.map_index >= 0 ? `/${entry.map_index}` : "";
  try {
    return await ask(`${taskPath(entry)}${mapped}`, urgency);
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

/** Videos of a list, from the plugin's own route. */
export async function readVideosOf(entry, offset, limit) {
  const answer = await takeTurn(() => fetchJson(`${ownPath(entry)}/videos?${new URLSearchParams({ offset, limit })}`));
  return { videos: answer.videos ?? [], total: answer.total ?? 0 };
}

/** Kling task ids of a list that is over, each with whether the list stored its video. */
export async function readKlingTasksOf(entry) {
  const { stored, others } = await takeTurn(() => fetchJson(`${ownPath(entry)}/kling-tasks`), "background");
  return new Map([...others.map((id) => [id, false]), ...stored.map((id) => [id, true])]);
}

/** Where a stored file is played from. */
export function fileAddress(entry, index, { item = null, download = false } = {}) {
  const parameters = new URLSearchParams();
  if (item !== null) parameters.set("item", item);
  if (download) parameters.set("download", "1");
  return `${ownPath(entry)}/files/${index}${parameters.size ? `?${parameters}` : ""}`;
}

/** Pages of Airflow's UI about a task instance. */
export function airflowPages(entry) {
  const dag = `${base}/dags/${encodeURIComponent(entry.dag_id)}`;
  const run = `${dag}/runs/${encodeURIComponent(entry.run_id)}`;
  const task = `${run}/tasks/${encodeURIComponent(entry.task_id)}`;
  return { dag, run, task: entry.map_index >= 0 ? `${task}/mapped/${entry.map_index}` : task };
}

/** Why a stored file cannot be had: the status (0 where it cannot be reached) and the server's words; null if it can. */
export async function whyNot(address) {
  try {
    const answer = await fetch(address, { credentials: "same-origin", headers: { Range: "bytes=0-0" } });
    if (answer.ok) return null;
    return { status: answer.status, detail: await detailOf(answer) };
  } catch {
    return { status: 0, detail: "" };
  }
}

function ask(path, urgency, isWanted) {
  return takeTurn(() => fetchJson(`${API}/${path}`), urgency, isWanted);
}

async function fetchJson(address) {
  let answer;
  try {
    answer = await fetch(address, { credentials: "same-origin", headers: { Accept: "application/json" } });
  } catch {
    throw new AskingError(0, "Airflow's API server cannot be reached.");
  }
  if (!answer.ok) throw new AskingError(answer.status, await detailOf(answer));
  return answer.json();
}

async function detailOf(answer) {
  try {
    const { detail } = await answer.json();
    return typeof detail === "string" ? detail : JSON.stringify(detail);
  } catch {
    return answer.statusText;
  }
}

function taskPath(entry) {
  const part = encodeURIComponent;
  return `dags/${part(entry.dag_id)}/dagRuns/${part(entry.run_id)}/taskInstances/${part(entry.task_id)}`;
}

function ownPath(entry) {
  const part = encodeURIComponent;
  return `${base}/kling/videos/dags/${part(entry.dag_id)}/runs/${part(entry.run_id)}/tasks/${part(entry.task_id)}`
    + `/${entry.map_index}`;
}

function parsed(value) {
  // Some versions of Airflow hand out JSON as it is stored.
  if (typeof value !== "string") return value;
  try {
    return JSON.parse(value);
  } catch {
    return null;
  }
}

function recall(entry) {
  try {
    const kept = JSON.parse(sessionStorage.getItem(KEPT + keyOf(entry)));
    return kept?.timestamp === entry.timestamp ? kept : null;
  } catch {
    return null;
  }
}

function remember(entry, value) {
  try {
    sessionStorage.setItem(KEPT + keyOf(entry), JSON.stringify(value));
  } catch {
    // Full, or not allowed: it is read again the next time.
  }
}
