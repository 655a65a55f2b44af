// Labels by keyboard: j and k (or arrows) move, also to the next and the previous page; g is good, b is bad, u undoes
// the last label.
"use strict";

(() => {
  const cards = () => [...document.querySelectorAll("li.card[data-uid]")];
  const isTyping = (target) => target.matches("input:not([type=checkbox], [type=radio]), select, textarea");

  function current() {
    return document.activeElement?.closest(".card[data-uid]") ?? document.querySelector("article.pair");
  }

  function focus(card) {
    card?.querySelector("a.picture").focus();
    card?.scrollIntoView({ block: "nearest" });
  }

  function move(step) {
    const all = cards();
    const at = all.indexOf(current());
    const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step;
    if (all[next]) focus(all[next]);
    else if (at === 0 && step === -1) turn("prev", "last-card");
    else if (at === all.length - 1 && step === 1) turn("next", "first-card");
  }

  function turn(link, card) {
    const page = document.querySelector(`nav.pages a[rel=${link}]`);
    if (page) location.assign(`${page.href}#${card}`);
  }

  // After the keyboard has turned the page, focus the first or last card.
  function arrive() {
    if (!["#first-card", "#last-card"].includes(location.hash)) return;
    focus(cards().at(location.hash === "#first-card" ? 0 : -1));
    history.replaceState(null, "", location.pathname + location.search);
  }
  arrive();

  function perRow() {
    const all = cards();
    const top = all[0]?.offsetTop;
    return Math.max(1, all.filter((card) => card.offsetTop === top).length);
  }

  function mark(uid, label) {
    for (const card of document.querySelectorAll(".card[data-uid]")) {
      if (card.dataset.uid !== uid) continue;
      if (label) card.dataset.label = label;
      else delete card.dataset.label;
      const text = card.querySelector(".mark");
      if (text) text.textContent = label ?? "";
    }
  }

  async function label(value) {
    const card = current();
    if (value !== "undo" && !card) return;
    const status = document.getElementById("labeled");
    try {
      const answer = await pairmill.post("/api/label", { uid: card?.dataset.uid ?? "", label: value });
      const found = await answer.json();
      if (!answer.ok) {
        status.textContent = found.error;
        return;
      }
      if (found.uid) mark(found.uid, found.label);
      status.textContent = `${pairmill.count(found.good)} good, ${pairmill.count(found.bad)} bad`;
    } catch {
      status.textContent = "The server is not responding: this label was not saved.";
    }
  }

  const keys = {
    j: () => move(1), k: () => move(-1),
    ArrowRight: () => move(1), ArrowLeft: () => move(-1),
    ArrowDown: () => move(perRow()), ArrowUp: () => move(-perRow()),
    g: () => label("good"), b: () => label("bad"), u: () => label("undo"),
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    if (event.target.matches("[type=radio]") && event.key.startsWith("Arrow")) return;
    const act = keys[event.key];
    if (!act || (event.key.startsWith("Arrow") && !document.activeElement?.closest("li.card"))) return;
    event.preventDefault();
    act();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-label-as]");
    if (button) label(button.dataset.labelAs);
  });
})();
