// Makes the page's forms work without loading it anew, and keeps the card up to date. Without this file the same forms
// post to the page itself. What the card shows is always the server's HTML; here is only when to ask for it.
"use strict";

const content = document.getElementById("content");
const said = document.getElementById("said");
const error = document.getElementById("error");
const query = new URLSearchParams(location.search);
const embedded = query.has("embed");

const WAITING_MS = 2000; // somebody is confirming in the chat
const PATIENT_MS = 15000; // nobody has for PATIENT_AFTER_MS
const PATIENT_AFTER_MS = 5 * 60000;
const RUNNING_MS = 4000;
const LINKED_MS = 60000;

const $ = (selector) => content.querySelector(selector);
const isLinked = () => $(".state")?.dataset.linked === "yes";

let busy = null; // the form whose request is under way
let shows = 0;
let ended = false; // logged out: asking on would only start a login in the background
let since = Date.now();
let timer = 0;

class Trouble extends Error {}

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, { redirect: "manual", ...options });
  } catch {
    throw new Trouble("The server cannot be reached. Check your connection and try again.");
  }
  if (answer.type === "opaqueredirect" || answer.status === 401) {
    ended = true;
    throw new Trouble("You are logged out. Reload this page to log in again.");
  }
  return answer;
}

async function api(action, body) {
  const options = { headers: { Accept: "application/json" } };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await ask(`/api/telegram/${action}`, options);
  const result = await answer.json().catch(() => ({}));
  if (!answer.ok) {
    throw new Trouble(result.error || `That did not work (${answer.status}). Try again in a minute.`);
  }
  return result;
}

async function refresh() {
  busy = null; // it is done, and what follows only shows it
  const show = ++shows;
  const answer = await ask(`/telegram?fragment${embedded ? "&embed" : ""}`, { headers: { Accept: "text/html" } });
  const text = await answer.text();
  if (!answer.ok) throw new Trouble("The page cannot be brought up to date. Reload it.");
  if (show !== shows) return; // a newer one is under way
  const focused = content.contains(document.activeElement) ? document.activeElement : null;
  const open = [...content.querySelectorAll("details[open]")].map((element) => element.id);
  content.innerHTML = text;
  for (const id of open) document.getElementById(id)?.setAttribute("open", "");
  if (focused) (document.getElementById(focused.id) || content).focus({ preventScroll: true });
}

function say(message) {
  error.textContent = "";
  said.textContent = message;
}

function complain(trouble) {
  if (!(trouble instanceof Trouble)) throw trouble;
  said.textContent = "";
  error.textContent = trouble.message;
}

function showChoices(choices) {
  $("#choices").hidden = !choices;
  $("#confirm").hidden = choices;
  $(choices ? "#code" : "#yes").focus();
}

function expire() {
  $("#invited").replaceChildren();
  $("#press").hidden = false;
  say("The link was not used within ten minutes. Make a new one.");
}

// What each form does beyond its request; `fields` are what it sends.
const actions = {
  async check(fields) {
    const code = fields.code.replace(/\s/g, "");
    const { chat } = await api("check", { code });
    $("#chat").textContent = chat;
    $("#confirm input[name=code]").value = code;
    say("");
    showChoices(false);
  },
  async verify(fields) {
    const { message } = await api("verify", { code: fields.code });
    await refresh();
    say(message);
    content.focus();
  },
  async unlink() {
    const { message } = await api("unlink", {});
    since = Date.now();
    await refresh();
    say(message);
    content.focus();
  },
  async invite() {
    const { url, expires, qr } = await api("invite", {});
    const part = document.importNode($("#invite-part").content, true);
    part.querySelector("#invite-link").href = url;
    if (qr) {
      part.querySelector("#qr").insertAdjacentHTML("afterbegin", qr);
      part.querySelector("#qr").hidden = false;
    }
    $("#invited").replaceChildren(part);
    $("#press").hidden = true;
    since = Date.now();
    say("");
    const link = $("#invite-link");
    link.focus();
    setTimeout(() => link.isConnected && expire(), expires * 1000 - Date.now());
  },
  async test() {
    say((await api("test", {})).message);
    await refresh();
  },
  async run(fields) {
    say((await api("run", { name: fields.name })).message);
    await refresh();
  },
};

content.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (busy) return;
  const form = event.target;
  const fields = Object.fromEntries(new FormData(form));
  const button = form.querySelector("button");
  const field = form.querySelector("#code");
  busy = form;
  button.setAttribute("aria-disabled", "true");
  field?.removeAttribute("aria-invalid");
  try {
    await actions[fields.do](fields);
  } catch (trouble) {
    complain(trouble);
    if (fields.do === "verify") showChoices(true);
    // What was refused has a reason that the card may not show yet: the bot was blocked, a script is gone.
    if (isLinked() && !ended) await refresh().catch(complain);
    if (field) {
      field.setAttribute("aria-invalid", "true");
      field.select();
    }
  } finally {
    if (busy === form) busy = null;
    button.removeAttribute("aria-disabled");
    plan();
  }
});

content.addEventListener("click", (event) => {
  if (event.target.id !== "back" || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  showChoices(true);
});

// While no chat is linked only the link is asked for, which costs little and leaves alone what somebody is typing.
async function look() {
  if (busy || document.hidden) return;
  if (isLinked()) {
    await refresh();
  } else if ((await api("status")).linked && !busy) {
    await refresh();
    say("Your chat is connected.");
  }
}

function pause() {
  if (isLinked()) return $("[data-running]") ? RUNNING_MS : LINKED_MS;
  return Date.now() - since < PATIENT_AFTER_MS ? WAITING_MS : PATIENT_MS;
}

function plan() {
  clearTimeout(timer);
  if (ended || document.hidden || !$(".state")) return;
  timer = setTimeout(async () => {
    try {
      await look();
    } catch (trouble) {
      if (!(trouble instanceof Trouble)) throw trouble;
      if (ended) complain(trouble); // else it is tried again, and whoever acts is told
      since = 0;
    }
    plan();
  }, pause());
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) since = Date.now();
  plan();
});

if (query.has("done")) {
  query.delete("done");
  history.replaceState(null, "", embedded ? "/telegram?embed" : "/telegram");
}
if (embedded && parent !== window) {
  // The page around may give the frame this height; it says nothing of whoever is logged in.
  new ResizeObserver(() => {
    parent.postMessage({ notifyCardHeight: document.documentElement.offsetHeight }, "*");
  }).observe(document.documentElement);
}
plan();
