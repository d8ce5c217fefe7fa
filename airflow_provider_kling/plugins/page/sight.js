// Who is in sight: cards are read when they come near, players load when they can be seen.

const near = observer("600px 0px", "onNear", "onFar");
const visible = observer("0px", "onVisible", "onHidden");

/** @param {object} watcher with some of onNear, onFar, onVisible, onHidden. */
export function watch(node, watcher) {
  near.add(node, watcher);
  visible.add(node, watcher);
}

export function unwatch(node) {
  near.remove(node);
  visible.remove(node);
}

function observer(rootMargin, entered, left) {
  const watchers = new WeakMap();
  const inside = new WeakSet();
  const watching = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      const watcher = watchers.get(target);
      if (isIntersecting && !inside.has(target)) {
        inside.add(target);
        watcher?.[entered]?.();
      } else if (!isIntersecting && inside.delete(target)) {
        watcher?.[left]?.();
      }
    }
  }, { rootMargin });
  return {
    add(node, watcher) {
      watchers.set(node, watcher);
      watching.observe(node);
    },
    remove(node) {
      watching.unobserve(node);
      if (inside.delete(node)) watchers.get(node)?.[left]?.();
      watchers.delete(node);
    },
  };
}
