// Requests to the server that gave this page: with its token, if it wants one, and with errors in its own words.

const KEY = "medseg-token";
const NO_ANSWER = { code: "NO_ANSWER", problem: "the server does not answer", hint: "is it still running?" };
const TRIES = 5;

let token = sessionStorage.getItem(KEY) ?? "";
let asking = null; // the dialog that is open, if one is
let askPerson = async () => "";

/** What went wrong, as the server says it. */
export class Problem extends Error {
  constructor({ code, problem, hint }, status = 0) {
    super(`${problem}; ${hint}`);
    Object.assign(this, { code, problem, hint, status });
  }
}

/** Find out whether a token is wanted, and ask for it by `ask`, which returns it once it is right. */
export async function enter(ask) {
  askPerson = ask;
  const { enabled } = await (await fetchOr("/auth/")).json();
  if (enabled && !(token && (await isRight(token)))) await newToken(token);
}

/** Return whether the server knows a token. */
export async function isRight(given) {
  if (!/^[\x21-\x7e]+$/.test(given)) return false; // such a one cannot be sent
  const answer = await fetchOr("/auth/token/valid", { headers: { authorization: `Bearer ${given}` } });
  return answer.ok;
}

/** Return the answer to a request. */
export async function ask(path, options = {}) {
  for (;;) {
    const used = token;
    const headers = used ? { authorization: `Bearer ${used}` } : {};
    const answer = await fetchOr(path, { ...options, headers });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw await problemIn(answer);
    await newToken(used);
  }
}

/** Send a form; `tell` is given the fraction that was sent. Return what ends it, and the answer to come. */
export function send(path, form, tell) {
  const request = new XMLHttpRequest();
  const transfer = { sent: false, abort: () => request.abort() };
  transfer.answer = new Promise((done, fail) => {
    request.upload.addEventListener("progress", (event) => event.lengthComputable && tell(event.loaded / event.total));
    request.upload.addEventListener("load", () => {
      transfer.sent = true;
      tell(1);
    });
    request.addEventListener("abort", () => fail(new DOMException("aborted", "AbortError")));
    request.addEventListener("error", () => fail(new Problem(NO_ANSWER)));
    request.addEventListener("load", () => {
      const answer = parsed(request.responseText);
      if (request.status < 300 && answer) done(answer);
      else fail(new Problem(answer?.error ?? NO_ANSWER, request.status));
      if (request.status === 401) newToken(token);
    });
  });
  request.open("POST", path);
  if (token) request.setRequestHeader("authorization", `Bearer ${token}`);
  request.send(form);
  return transfer;
}

/** Yield how far a job has come until it has ended, through connections that break. */
export async function* follow(job) {
  for (let failed = 0; failed < TRIES; failed += 1) {
    try {
      for await (const info of events(`/jobs/${encodeURIComponent(job)}/events`)) {
        yield info;
        if (!["waiting", "running"].includes(info.state)) return;
        failed = 0;
      }
    } catch (error) {
      if (error instanceof Problem && error.status) throw error;
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
  throw new Problem(NO_ANSWER);
}

async function* events(path) {
  const answer = await ask(path);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const lines = part.split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(6)).join("\n"));
    }
  }
}

async function fetchOr(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(NO_ANSWER);
  }
}

async function newToken(used) {
  if (token !== used) return; // another request has asked already
  asking ??= askPerson().then((given) => {
    token = given;
    sessionStorage.setItem(KEY, given);
    asking = null;
  });
  await asking;
}

async function problemIn(answer) {
  const error = parsed(await answer.text())?.error;
  return new Problem(error ?? { ...NO_ANSWER, problem: `the server answers ${answer.status}` }, answer.status);
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}
