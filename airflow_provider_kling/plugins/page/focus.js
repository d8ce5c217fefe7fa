// Lets whoever works with the keyboard stay where they are when that is drawn anew.

import { airflowDocument } from "./frame.js";

/**
 * Draw a card anew. Where the focus was in it, it is afterwards on the same element, or on the one that took its place:
 * that has the same `data-control`. Where there is none any more, it is on the first control of the card.
 *
 * @param {Element} node what the card stays in.
 * @param {() => void} draw
 */
export function keepingFocus(node, draw) {
  const before = document.activeElement;
  const hadFocus = node.contains(before) && isFocusHere();
  draw();
  if (!hadFocus || node.contains(document.activeElement)) return;
  const after = node.contains(before) ? before
    : node.querySelector(`[data-control="${before.dataset.control}"]`) ?? node.querySelector("[data-control]");
  after?.focus({ preventScroll: true });
}

/** Whether it is not in Airflow's own page around this one, which it must not be taken from. */
function isFocusHere() {
  return airflowDocument === null || airflowDocument.activeElement === window.frameElement;
}
