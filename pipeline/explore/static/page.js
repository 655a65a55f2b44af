// On every page: pictures that cannot be shown, copy buttons, and the notice about new shards. Text is never set as
// HTML.
"use strict";

const pairmill = {
  token: document.querySelector('meta[name="pairmill-token"]').content,

  post(address, fields) {
    const body = new URLSearchParams({ ...fields, token: pairmill.token });
    return fetch(address, { method: "POST", body, headers: { Accept: "application/json" } });
  },

  count(number) {
    return number.toLocaleString("en-US");
  },

  replaceMissing(image) {
    const text = image.parentElement.querySelector(".missing");
    image.hidden = true;
    if (!text) return;
    text.textContent = "no picture";
    text.hidden = false;
    const isText = (answer) => answer.headers.get("content-type")?.startsWith("text/plain");
    fetch(image.src).then((answer) => (answer.ok || !isText(answer) ? null : answer.text())).then((why) => {
      if (why) text.textContent = why.slice(0, 120);
    }, () => null);
  },
};

document.documentElement.classList.add("js");

document.addEventListener("error", (event) => {
  if (event.target instanceof HTMLImageElement) pairmill.replaceMissing(event.target);
}, true);
for (const image of document.images) {
  if (image.complete && !image.naturalWidth && image.loading !== "lazy") pairmill.replaceMissing(image);
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    button.textContent = "select the text and press Ctrl-C";
  }
  setTimeout(() => { button.textContent = "copy"; }, 1500);
});

async function lookForShards() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/api/new-shards");
    if (!answer.ok) return;
    const { shards } = await answer.json();
    document.getElementById("reload").hidden = shards === 0;
    document.getElementById("reload-text").textContent =
      `${pairmill.count(shards)} new ${shards === 1 ? "shard" : "shards"}`;
  } catch {
    // the server has stopped; the next page that is opened will show it
  }
}
lookForShards();
setInterval(lookForShards, 5000);
