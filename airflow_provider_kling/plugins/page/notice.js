// What the page says where there is nothing to see, and what to do next.

import { loginAddress, logIn } from "./frame.js";
import { element } from "./element.js";

export function nothingYet() {
  return notice("No videos yet",
    "Videos show up here as soon as a task with a Kling operator has asked for one, also while they are being made.",
    code(["KlingGenerateVideoOperator(", '    task_id="make_video",', '    prompt="A paper boat in the rain",',
      '    output_path="s3://my_conn@my-bucket/videos",', ")"].join("\n")),
    element("p", {}, "You see the videos of the Dags whose XComs you may read."));
}

export function nothingMatches(clear) {
  return notice("No video matches", "Choose fewer filters, or a longer time.",
    element("button.button", { type: "button", click: clear }, "Clear filters"));
}

export function failedToRead(error, again) {
  if (error.status === 401) {
    return notice("You are not logged in", "Your session has ended. Log in again to see the videos.",
      element("a.button", { href: loginAddress(), click: (event) => { event.preventDefault(); logIn(); } }, "Log in"));
  }
  if (error.status === 403) {
    return notice("You may not see this", "The videos of a Dag are shown to whoever may read its XComs. "
      + "Ask an administrator of this Airflow for the permission to read the XComs of this Dag.");
  }
  const what = error.status ? `Airflow answered ${error.status}: ${error.message}` : error.message;
  return notice("The videos could not be read", what,
    element("button.button", { type: "button", click: again }, "Try again"));
}

export function noSuchVideo(task) {
  if (!task) {
    return notice("No such task", "There is no task instance with these ids, or you may not see it. "
      + "Its run may have been deleted, and what it left with it.");
  }
  return notice("No video here yet", `The task is “${task.state ?? "not scheduled yet"}” and has not asked for a video `
    + "(or it runs again, and has not asked yet). This page looks again by itself.");
}

export function notice(title, text, ...more) {
  return element("section.notice", {}, element("h2", {}, title), element("p", {}, text), ...more);
}

function code(text) {
  return element("pre", { tabindex: "0" }, element("code", {}, text));
}
