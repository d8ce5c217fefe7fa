// What is known of one video (or one list of them): the value that a task left, read with care.

const WAITING = new Set(["queued", "submitted"]);
const TASK_IS_OVER = new Set(["success", "failed", "upstream_failed", "skipped", "removed"]);
// What has most to show wins where several tasks tell of one video.
const WORTH = ["unknown", "not_submitted", "dry_run", "queued", "submitted", "failed", "unresolved", "undelivered", "completed"];
const SHORT = 110;
// A task that does not wait leaves no word of the end: another one may.
const STILL_EXPECTED = 2 * 60 * 60 * 1000;

/** @param {object} value the XCom that a task left, or one video out of a list. */
export function cardOf(value) {
  const request = value.request && typeof value.request === "object" ? value.request : {};
  const files = Array.isArray(value.files) ? value.files.filter((file) => file && typeof file === "object") : [];
  const state = typeof value.state === "string" ? value.state : "submitted"; // earlier versions told no state
  const kind = value.kind === "list" ? "list" : "video";
  return {
    kind,
    state,
    isWaiting: WAITING.has(state),
    waits: value.waits !== false,
    klingTaskId: text(value.task_id),
    // A task that only waited for a video, or fetched it, knows neither.
    hasAsked: Object.keys(request).length > 0 || number(value.estimated_cost_usd) !== null,
    prompt: promptOf(request) ?? text(value.prompt),
    model: text(value.model) ?? text(request.model),
    mode: text(request.mode) ?? (request.model || request.prompt ? "std" : null),
    sound: soundOf(files[0], request),
    seconds: number(files[0]?.duration_seconds) ?? number(value.duration_seconds),
    generationSeconds: number(value.generation_seconds),
    estimated: number(value.estimated_cost_usd),
    recorded: number(value.recorded_cost_usd),
    submittedAt: time(value.submitted_at),
    completedAt: time(value.completed_at),
    toldAt: time(value.timestamp),
    files,
    link: httpAddress(value.video_url),
    expiresAt: time(value.expires_at),
    error: text(value.error),
    item: number(value.item),
    counts: kind === "list" ? countsOf(value) : null,
  };
}

/** The card with what Airflow says of the task: one that was killed could not say so itself. */
export function withTask(card, task) {
  if (!card.isWaiting || !task) return card;
  if (!TASK_IS_OVER.has(task.state)) return { ...card, taskState: task.state };
  if (!card.waits) return card;
  if (task.state === "success") {
    return { ...card, state: "unknown", isWaiting: false, taskState: task.state,
      error: "The task succeeded, but left no word of the result here. Its XComs tell more." };
  }
  return { ...card, state: "unresolved", isWaiting: false, taskState: task.state,
    error: `The task ended as “${task.state}” before it could say what became of the video, which may still be `
      + "completed and billed. Its log tells more; if it is cleared, it takes up what is paid for." };
}

/** Whether a look later can show something new. */
export function mayChange(card, now = Date.now()) {
  if (!card.isWaiting) return false;
  return card.waits || now - Date.parse(card.submittedAt ?? card.toldAt) < STILL_EXPECTED;
}

/** One card of two that tell of the same video. */
export function merged(one, other) {
  const [more, less] = WORTH.indexOf(other.state) > WORTH.indexOf(one.state) ? [other, one] : [one, other];
  const known = Object.entries(more).filter(([, value]) => value !== null && value !== undefined);
  return { ...less, ...Object.fromEntries(known), files: more.files.length ? more.files : [],
    hasAsked: one.hasAsked || other.hasAsked };
}

export function isWorthMore(one, other) {
  return WORTH.indexOf(one.state) > WORTH.indexOf(other.state)
    || (one.state === other.state && one.files.length > other.files.length);
}

export function isExpired(card, now = Date.now()) {
  return card.expiresAt !== null && Date.parse(card.expiresAt) <= now;
}

/** The group of states that the filter knows it by. */
export function stateForFilter(card) {
  return card.isWaiting ? "waiting" : card.state;
}

export function shortened(prompt) {
  const line = prompt.replace(/\s+/g, " ").trim();
  if (line.length <= SHORT) return line;
  const cut = line.slice(0, SHORT);
  return `${cut.slice(0, Math.max(cut.lastIndexOf(" "), SHORT - 20)).trimEnd()}…`;
}

function promptOf(request) {
  if (text(request.prompt)) return request.prompt;
  if (!Array.isArray(request.multi_prompt)) return null;
  const shots = request.multi_prompt.map((shot, at) => `${at + 1}. ${text(shot?.prompt) ?? ""}`);
  return shots.join("\n") || null;
}

function soundOf(file, request) {
  if (typeof file?.has_sound === "boolean") return file.has_sound;
  if (request.sound) return request.sound === "on";
  return request.model || request.prompt ? false : null;
}

function countsOf(value) {
  const names = ["total", "completed", "failed", "unresolved", "undelivered", "not_submitted"];
  const counts = Object.fromEntries(names.map((name) => [name, number(value[name]) ?? 0]));
  return { ...counts, recordedVideos: number(value.recorded_videos) };
}

function text(value) {
  return typeof value === "string" && value !== "" ? value : null;
}

function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

function time(value) {
  return typeof value === "string" && !Number.isNaN(Date.parse(value)) ? value : null;
}

function httpAddress(value) {
  return typeof value === "string" && /^https?:\/\//i.test(value) ? value : null;
}
