// Makes elements. Whatever comes from a prompt or the service goes in as text, and never as markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag with classes behind dots, such as "p.fact".
 * @param {object} properties attributes by name; functions are listeners; null and false are left out.
 * @param {...(Node|string|null)} children strings become text.
 */
export function element(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElement(name), classes, properties, children);
}

export function drawing(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  return fill(document.createElementNS(SVG, name), classes, properties, children);
}

/** A picture of 24 by 24, drawn with lines, that says nothing to a screen reader. */
export function icon(...paths) {
  const lines = paths.map((d) => drawing("path", { d }));
  return drawing("svg.icon", { viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" }, ...lines);
}

function fill(node, classes, properties, children) {
  if (classes.length) node.classList.add(...classes);
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
