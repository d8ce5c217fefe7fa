// Looks like Airflow around it: light or dark as there, in its colours also where an administrator has changed them.

import { airflowDocument } from "./frame.js";

// Ours by the names of Airflow's.
const COLOURS = {
  "--bg": "bg", "--bg-muted": "bg-muted", "--fg": "fg", "--fg-muted": "fg-muted",
  "--accent": "brand-solid", "--accent-fg": "brand-fg", "--accent-subtle": "brand-muted", "--on-accent": "brand-contrast",
  "--focus": "brand-focus-ring",
};
const systemIsDark = matchMedia("(prefers-color-scheme: dark)");

export function followTheme() {
  apply();
  systemIsDark.addEventListener("change", apply);
  addEventListener("storage", (event) => event.key === "theme" && apply());
  if (airflowDocument) {
    const changes = new MutationObserver(apply);
    changes.observe(airflowDocument.documentElement, { attributeFilter: ["class", "data-theme", "style"] });
  }
}

function apply() {
  const root = document.documentElement;
  root.dataset.theme = isDark() ? "dark" : "light";
  if (!airflowDocument) return;
  const airflows = airflowDocument.defaultView.getComputedStyle(airflowDocument.documentElement);
  for (const [ours, theirs] of Object.entries(COLOURS)) {
    const colour = airflows.getPropertyValue(`--chakra-colors-${theirs}`).trim();
    if (colour) root.style.setProperty(ours, colour);
    else root.style.removeProperty(ours);
  }
}

function isDark() {
  const around = airflowDocument?.documentElement.classList;
  if (around?.contains("dark")) return true;
  if (around?.contains("light")) return false;
  const chosen = stored();
  return chosen === "dark" || (chosen !== "light" && systemIsDark.matches);
}

function stored() {
  try {
    return localStorage.getItem("theme");
  } catch {
    return null;
  }
}
