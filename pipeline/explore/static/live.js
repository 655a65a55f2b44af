// The live page: asks for the state every two seconds and updates the page.
"use strict";

(() => {
  const EVERY_MS = 2000;
  const at = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg";

  function cell(kind, text, name) {
    const made = document.createElement(kind);
    made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  function lossRow(loss) {
    const row = document.createElement("tr");
    const head = cell("th", loss.reason);
    head.scope = "row";
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 100 10");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const rect = document.createElementNS(SVG, "rect");
    rect.setAttribute("width", (100 * loss.share_left).toFixed(2));
    rect.setAttribute("height", "10");
    svg.append(rect);
    const bar = cell("td", "", "bar");
    bar.append(svg);
    row.append(head, cell("td", `−${pairmill.count(loss.rows)}`, "num"), cell("td", pairmill.count(loss.left), "num"), bar);
    return row;
  }

  function card(picture) {
    const made = document.createElement("li");
    made.className = "card";
    const frame = cell("span", "", "picture");
    const image = document.createElement("img");
    image.src = picture.address;
    image.alt = picture.caption || "Picture without a caption";
    const missing = cell("span", "", "missing");
    missing.hidden = true;
    frame.append(image, missing);
    made.append(frame, cell("p", picture.caption || "no caption", "caption"));
    return made;
  }

  function show(state) {
    at("shards-done").textContent = pairmill.count(state.shards_done);
    at("shards").textContent = pairmill.count(state.shards);
    at("progress").max = Math.max(1, state.shards);
    at("progress").value = state.shards_done;
    at("rows-in").textContent = pairmill.count(state.rows_in);
    at("kept").textContent = pairmill.count(state.kept);
    at("kept-share").textContent = state.rows_in ? `${((100 * state.kept) / state.rows_in).toFixed(1)}%` : "";
    const isFinished = state.shards_done >= state.shards;
    if (isFinished) at("rate").textContent = "";
    else if (state.rows_per_s !== null) at("rate").textContent = `${state.rows_per_s.toFixed(1)} rows/s in the last minute`;
    at("live-status").textContent = isFinished ? "finished" : "updates every two seconds";
    at("losses").tBodies[0].replaceChildren(...state.losses.map(lossRow));
    at("losses").hidden = state.losses.length === 0;
    at("no-losses").hidden = state.losses.length > 0;
    at("no-losses").textContent = isFinished ? "Nothing was refused." : "Nothing has been refused so far.";
    at("no-newest").hidden = state.newest.length > 0;
    at("no-newest").textContent = isFinished ? "No row became a pair." : "No picture has arrived yet.";
    const shown = [...at("newest").querySelectorAll("img")].map((image) => image.getAttribute("src"));
    if (shown.join() !== state.newest.map((each) => each.address).join()) {
      at("newest").replaceChildren(...state.newest.map(card));
    }
  }

  async function look() {
    try {
      const answer = await fetch("/api/live");
      if (answer.ok) show(await answer.json());
      else at("live-status").textContent = (await answer.json()).error;
    } catch {
      at("live-status").textContent = "The server is not responding. Is pairmill explore still running?";
    }
    setTimeout(look, EVERY_MS);
  }
  setTimeout(look, EVERY_MS);
})();
