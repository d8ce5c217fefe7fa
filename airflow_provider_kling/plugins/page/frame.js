// Life inside Airflow's frame: the address that a person sees is that of the page around it, and so are the links.
// The frame is sandboxed: it may not open windows or lead the page around it elsewhere. But it is of the same origin,
// so it may ask Airflow's own router to go somewhere, and click on a link that stands outside.

export const base = location.pathname.replace(/\/kling\/videos\/?$/, "");

const outside = findOutside();

/** Airflow's document around this page; null where this page stands alone. */
export const airflowDocument = outside?.document ?? null;

/** The query that the page was opened with. */
export function query() {
  // Airflow 3.3 sets its own address after this page's as soon as this one is loaded; older ones leave it alone.
  const own = new URLSearchParams(location.search);
  return own.size || !outside ? own : new URLSearchParams(outside.location.search);
}

/** Write the query into the address that the person sees, and into this page's own, without a step in the history. */
export function setQuery(parameters) {
  const search = parameters.size ? `?${parameters}` : "";
  history.replaceState(history.state, "", `${location.pathname}${search}`);
  if (outside) outside.history.replaceState(outside.history.state, "", `${outside.location.pathname}${search}`);
}

/** Make a link into Airflow work wherever this page stands. */
export function leadIntoAirflow(link) {
  if (!outside) return link;
  link.addEventListener("click", (event) => {
    event.preventDefault();
    if (event.ctrlKey || event.metaKey || event.shiftKey) clickOutside(link.href, { target: "_blank" });
    else goTo(link.href);
  });
  link.addEventListener("auxclick", (event) => {
    if (event.button !== 1) return;
    event.preventDefault();
    clickOutside(link.href, { target: "_blank" });
  });
  return link;
}

/** Make a link that leads away open in a tab of its own. */
export function leadAway(link) {
  link.target = "_blank";
  link.rel = "noopener noreferrer";
  if (outside) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      clickOutside(link.href, { target: "_blank", rel: "noopener noreferrer" });
    });
  }
  return link;
}

/** Make a link download what it leads to: before Airflow 3.3 the frame may not, and the page around it has to. */
export function letDownload(link) {
  link.setAttribute("download", "");
  if (outside && !window.frameElement.sandbox.contains("allow-downloads") && window.frameElement.sandbox.length) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      clickOutside(link.href, { download: "" });
    });
  }
  return link;
}

/** Where a person logs in, to come back here. */
export function loginAddress() {
  return `${base}/api/v2/auth/login?next=${encodeURIComponent((outside ?? window).location.href)}`;
}

export function logIn() {
  clickOutside(new URL(loginAddress(), location.href).href, {});
}

function goTo(href) {
  const { pathname, search } = new URL(href);
  const state = { idx: (outside.history.state?.idx ?? 0) + 1, key: Math.random().toString(36).slice(2, 10), usr: null };
  outside.history.pushState(state, "", `${pathname}${search}`);
  outside.dispatchEvent(new outside.PopStateEvent("popstate", { state }));
}

function clickOutside(href, properties) {
  const owner = airflowDocument ?? document;
  const link = Object.assign(owner.createElement("a"), { href, hidden: true, ...properties });
  owner.body.append(link);
  link.click();
  link.remove();
}

function findOutside() {
  try {
    // Throws where the page around is of another origin.
    return window.parent !== window && window.parent.document && window.frameElement ? window.parent : null;
  } catch {
    return null;
  }
}
