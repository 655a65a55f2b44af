// The gallery: sliders, live counts, and new results without reloading the page.
"use strict";

(() => {
  const form = document.getElementById("filters");
  const results = () => document.getElementById("results");
  const count = document.getElementById("count");
  const problem = document.getElementById("problem");
  const COUNT_AFTER_MS = 60;
  const SHOW_AFTER_MS = 350;
  let countTimer, showTimer, counting, showing;

  function parameters() {
    const found = new URLSearchParams();
    for (const [name, value] of new FormData(form)) {
      if (typeof value !== "string") continue;
      if (value.trim() !== "" || name.startsWith("is:")) found.append(name, value);  // a choice can be an empty text
    }
    if (found.get("rows") === "kept") found.delete("rows");
    if (found.get("order") === "best") found.delete("order");
    if (found.get("order") !== "around") found.delete("around");
    return found;
  }

  function setProblem(text) {
    problem.hidden = !text;
    problem.textContent = text;
  }

  async function showCount() {
    counting?.abort();
    counting = new AbortController();
    form.classList.add("busy");
    try {
      const answer = await fetch(`/api/count?${parameters()}`, { signal: counting.signal });
      const found = await answer.json();
      setProblem(found.error ?? "");
      if (!answer.ok) return;
      count.textContent = pairmill.count(found.count);
      document.getElementById("of").textContent = pairmill.count(found.of);
      const expression = document.getElementById("expression");
      expression.textContent = found.expression || expression.dataset.empty;
      document.getElementById("command").textContent = found.command;
      document.getElementById("save-query").value = parameters().toString();
    } catch (error) {
      if (error.name === "AbortError") return;
      setProblem("The server is not responding. Is pairmill explore still running?");
    }
    form.classList.remove("busy");
  }

  // Parse the new page as a separate document, in which no script runs, and replace our list of pairs with its list.
  async function show(page, keepAddress) {
    showing?.abort();
    showing = new AbortController();
    const address = page ?? `/?${parameters()}`;
    results().setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(address, { signal: showing.signal });
      const text = await answer.text();
      if (!answer.ok) return;
      const found = new DOMParser().parseFromString(text, "text/html").getElementById("results");
      results().replaceWith(document.adoptNode(found));
      if (!keepAddress) history.replaceState(null, "", address);
    } catch (error) {
      if (error.name === "AbortError") return;
    }
    results().setAttribute("aria-busy", "false");
  }

  function changed() {
    clearTimeout(countTimer);
    clearTimeout(showTimer);
    countTimer = setTimeout(showCount, COUNT_AFTER_MS);
    showTimer = setTimeout(() => show(), SHOW_AFTER_MS);
  }

  function drawBars(filter) {
    const sliders = filter.querySelector(".sliders");
    const [low, high] = [Number(sliders.dataset.low), Number(sliders.dataset.high)];
    const bars = filter.querySelectorAll(".bars rect");
    const [from, to] = [...sliders.querySelectorAll("input")].map((each) => Number(each.value));
    for (const bar of bars) {
      const middle = low + ((Number(bar.dataset.index) + 0.5) * (high - low)) / 40;
      bar.classList.toggle("out", middle < from || middle > to);
    }
  }

  for (const filter of form.querySelectorAll(".filter.number")) {
    const sliders = filter.querySelector(".sliders");
    sliders.hidden = false;
    const column = filter.dataset.column;
    for (const slider of sliders.querySelectorAll("input")) {
      const end = slider.dataset.end;
      const box = [...filter.querySelectorAll(".bounds input")].find((each) => each.name === `${end}:${column}`);
      const isAtEnd = () => (end === "min" ? slider.value === slider.min : slider.value === slider.max);
      slider.addEventListener("input", () => {
        box.value = isAtEnd() ? "" : slider.value;
        drawBars(filter);
      });
      box.addEventListener("input", () => {
        slider.value = box.value.trim() === "" ? (end === "min" ? slider.min : slider.max) : box.value;
        drawBars(filter);
      });
    }
    drawBars(filter);
  }

  form.addEventListener("input", changed);
  form.addEventListener("change", (event) => {
    if (event.target.name === "order") form.querySelector(".around").hidden = event.target.value !== "around";
  });
  form.addEventListener("submit", (event) => {
    if (event.target !== form) return;
    event.preventDefault();
    clearTimeout(countTimer);
    clearTimeout(showTimer);
    showCount();
    show();
  });

  document.getElementById("exact")?.addEventListener("click", async (event) => {
    const button = event.target;
    button.disabled = true;
    button.textContent = "counting ...";
    const answer = await pairmill.post("/api/exact", { query: parameters().toString() });
    const found = await answer.json();
    button.textContent = answer.ok ? `exactly ${pairmill.count(found.count)}` : "failed";
    if (!answer.ok) setProblem(found.error);
    button.disabled = false;
  });

  if (matchMedia("(max-width: 860px)").matches) document.getElementById("side").open = false;
})();
