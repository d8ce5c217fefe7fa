// Takes turns at asking the API server: six questions at once. Which videos there are comes first, then what a person
// looks at, then what is only added up. Whoever scrolls on no longer wants what was to be asked for the cards between.

const AT_ONCE = 6;
const IN_BACKGROUND = 2;

const waiting = { first: [], now: [], background: [] };
let underWay = 0;
let inBackground = 0;

/** What a question ends with that nobody wanted to have answered any more. */
export class NotWantedError extends Error {}

/**
 * Ask when it is this question's turn.
 *
 * @param {() => Promise} ask
 * @param {"first"|"now"|"background"} urgency
 * @param {() => boolean} isWanted asked when its turn has come.
 */
export function takeTurn(ask, urgency = "now", isWanted = () => true) {
  return new Promise((resolve, reject) => {
    waiting[urgency].push({ ask, isWanted, resolve, reject });
    next();
  });
}

function next() {
  for (const urgency of ["first", "now"]) {
    while (underWay < AT_ONCE && waiting[urgency].length) start(waiting[urgency].shift(), false);
  }
  while (underWay < AT_ONCE && inBackground < IN_BACKGROUND && waiting.background.length) {
    start(waiting.background.shift(), true);
  }
}

async function start({ ask, isWanted, resolve, reject }, background) {
  if (!isWanted()) {
    reject(new NotWantedError());
    return;
  }
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
