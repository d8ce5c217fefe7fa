// How times, sums and states are written.

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** The time zone that the person has chosen in Airflow's UI. */
export const timeZone = chosenTimeZone();

const clock = new Intl.DateTimeFormat("en-CA", {
  timeZone, hourCycle: "h23", year: "numeric", month: "2-digit", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});

/** "2026-05-01 09:30:00", as Airflow writes it. */
export function moment(iso) {
  const parts = partsOf(iso);
  return parts ? `${parts.year}-${parts.month}-${parts.day} ${parts.hour}:${parts.minute}:${parts.second}` : "";
}

/** "2026-05-01". */
export function day(iso) {
  const parts = partsOf(iso);
  return parts ? `${parts.year}-${parts.month}-${parts.day}` : "";
}

export function ago(iso, now = Date.now()) {
  const seconds = (now - Date.parse(iso)) / 1000;
  if (!Number.isFinite(seconds)) return "";
  if (seconds < MINUTE) return "just now";
  if (seconds < HOUR) return `${Math.floor(seconds / MINUTE)} min ago`;
  if (seconds < DAY) return `${Math.floor(seconds / HOUR)} h ago`;
  const days = Math.floor(seconds / DAY);
  return days === 1 ? "1 day ago" : `${days} days ago`;
}

export function ahead(iso, now = Date.now()) {
  const seconds = (Date.parse(iso) - now) / 1000;
  if (seconds < HOUR) return `in ${Math.max(1, Math.round(seconds / MINUTE))} min`;
  if (seconds < 2 * DAY) return `in ${Math.round(seconds / HOUR)} h`;
  return `in ${Math.round(seconds / DAY)} days`;
}

/** "0:42", "1:05:00". */
export function elapsed(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(whole / HOUR), Math.floor((whole % HOUR) / MINUTE)];
  return hours ? `${hours}:${two(minutes)}:${two(whole % MINUTE)}` : `${minutes}:${two(whole % MINUTE)}`;
}

/** "42 s", "1 min 5 s": a length of time as people say it. */
export function lasted(seconds) {
  const whole = Math.round(seconds);
  if (whole < 100) return `${Number.isInteger(seconds) || seconds >= 10 ? whole : seconds.toFixed(1)} s`;
  return whole < HOUR ? `${Math.floor(whole / MINUTE)} min ${whole % MINUTE} s` : elapsed(whole);
}

export function usd(amount) {
  const digits = amount !== 0 && Math.abs(amount) < 0.1 ? 3 : 2;
  return `$${amount.toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

export function size(bytes) {
  if (bytes < 1e6) return `${Math.max(1, Math.round(bytes / 1e3))} KB`;
  return bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;
}

export function count(number, one, many = `${one}s`) {
  return `${number.toLocaleString("en-US")} ${number === 1 ? one : many}`;
}

export const STATE_WORDS = {
  queued: "Queued",
  submitted: "Waiting",
  completed: "Completed",
  failed: "Failed",
  unresolved: "Unresolved",
  undelivered: "Not delivered",
  not_submitted: "Not asked for",
  dry_run: "Dry run",
  unknown: "Not known",
};

function partsOf(iso) {
  const time = Date.parse(iso);
  if (Number.isNaN(time)) return null;
  return Object.fromEntries(clock.formatToParts(time).map(({ type, value }) => [type, value]));
}

function chosenTimeZone() {
  try {
    const chosen = (localStorage.getItem("timezone") ?? "UTC").replaceAll('"', "");
    const zone = chosen === "local" ? undefined : chosen || "UTC";
    new Intl.DateTimeFormat("en", { timeZone: zone });
    return zone;
  } catch {
    return "UTC";
  }
}
