// Takes turns at asking the API server: six questions at once, and what a person looks at comes before sums.

const AT_ONCE = 6;
const IN_BACKGROUND = 2;

const waiting = { now: [], background: [] };
let underWay = 0;
let inBackground = 0;

/**
 * Ask when it is this question's turn.
 *
 * @param {() => Promise} ask
 * @param {"now"|"background"} urgency
 */
export function takeTurn(ask, urgency = "now") {
  return new Promise((resolve, reject) => {
    waiting[urgency].push({ ask, resolve, reject });
    next();
  });
}

function next() {
  while (underWay < AT_ONCE && waiting.now.length) start(waiting.now.shift(), false);
  while (underWay < AT_ONCE && inBackground < IN_BACKGROUND && waiting.background.length) {
    start(waiting.background.shift(), true);
  }
}

async function start({ ask, resolve, reject }, background) {
  underWay += 1;
  inBackground += background ? 1 : 0;
  try {
    resolve(await ask());
  } catch (error) {
    reject(error);
  } finally {
    underWay -= 1;
    inBackground -= background ? 1 : 0;
    next();
  }
}
