"use strict";
// Two things only: a select instead of folded grids, and judging pairs without their names. Texts are set as text, never as markup.

const make = (name, text = "", classes = "") => {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = classes;
  return made;
};

// --- one grid at a time ---------------------------------------------------------------------------------------------------------

for (const swap of document.querySelectorAll(".swap")) {
  const folds = [...swap.children].filter((child) => child.tagName === "DETAILS");
  const select = make("select");
  const show = () => folds.forEach((fold, i) => (fold.hidden = !(fold.open = i === select.selectedIndex)));
  folds.forEach((fold) => select.append(make("option", fold.firstElementChild.textContent)));
  select.addEventListener("change", show);
  const label = make("label", `${swap.dataset.label} `, "choose");
  label.append(select);
  swap.prepend(label);
  swap.classList.add("chosen");
  show();
}

// --- votes ----------------------------------------------------------------------------------------------------------------------

const SHOWN_FROM = 5; // votes before the count is told: a first few must not lead the rest

// Wilson's interval of a rate, 95 %; ties count half.
function wilson(rate, n, z = 1.959964) {
  const middle = (rate + (z * z) / (2 * n)) / (1 + (z * z) / n);
  const half = (z / (1 + (z * z) / n)) * Math.sqrt((rate * (1 - rate)) / n + (z * z) / (4 * n * n));
  return [middle - half, middle + half];
}

// A fixed draw by the pair's words (FNV-1a, then mixed): true puts the second model on the left.
function flipped(words) {
  let hash = 2166136261;
  for (const letter of words) hash = Math.imul(hash ^ letter.codePointAt(0), 16777619);
  hash = Math.imul(hash ^ (hash >>> 16), 2246822507);
  return ((hash ^ (hash >>> 13)) >>> 7) % 2 === 1;
}

const rounded = (share) => `${Math.round(100 * share)}\u00a0%`;

class Blind {
  constructor(root) {
    this.root = root;
    this.part = (selector) => root.querySelector(selector);
    this.section = root.closest("section");
    this.models = JSON.parse(root.dataset.models);
    this.items = [...this.section.querySelectorAll(".drawn [data-item]")];
    this.chosen = [0, 1];
    this.books = this.read(); // "first|second" (places of the models) -> [[item, "first" | "second" | "tie"], ...], oldest first
    this.listen();
  }

  read() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.root.dataset.key));
      return kept && typeof kept === "object" ? kept : {};
    } catch {
      return {};
    }
  }

  save() {
    try {
      localStorage.setItem(this.root.dataset.key, JSON.stringify(this.books));
      return true;
    } catch {
      return false;
    }
  }

  get pair() {
    return [...this.chosen].sort((a, b) => a - b);
  }

  get names() {
    return this.pair.map((place) => this.models[place]);
  }

  get votes() {
    return (this.books[this.pair.join("|")] ||= []);
  }

  get known() {
    return this.items.filter((item) => this.names.every((name) => this.picture(item, name)));
  }

  picture(item, name) {
    return [...item.querySelectorAll("[data-model]")].find((shown) => shown.dataset.model === name);
  }

  flip(item) {
    return flipped([...this.names, item.dataset.item, item.dataset.prompt].join("\n"));
  }

  listen() {
    const modes = this.section.querySelector(".modes");
    modes.hidden = false;
    modes.addEventListener("click", (event) => this.mode(event.target.closest("button")?.dataset.mode, modes));
    this.part(".stage").addEventListener("keydown", (event) => this.key(event));
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button?.dataset.vote) this.vote(button.dataset.vote);
      if (button?.dataset.do) this[button.dataset.do]();
    });
    for (const select of this.root.querySelectorAll("select")) {
      select.addEventListener("change", () => {
        this.chosen[select.dataset.side] = select.selectedIndex;
        this.draw();
      });
    }
  }

  mode(mode, modes) {
    if (!mode) return;
    for (const button of modes.children) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
    this.root.hidden = mode !== "blind";
    this.section.classList.toggle("judging", mode === "blind");
    this.draw();
    if (mode === "blind") this.part(".stage").focus({ preventScroll: true });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.tagName === "BUTTON" && [" ", "Enter"].includes(event.key)) return; // presses the button
    const vote = { ArrowLeft: "left", 1: "left", ArrowRight: "right", 2: "right", " ": "tie", 0: "tie" }[event.key];
    if (!vote) return;
    event.preventDefault();
    this.vote(vote);
  }

  vote(side) {
    if (!this.current) return;
    const first = (side === "left") !== this.flip(this.current);
    this.votes.push([this.current.dataset.item, side === "tie" ? "tie" : first ? "first" : "second"]);
    this.changed();
  }

  undo() {
    this.votes.pop();
    this.changed();
  }

  reset() {
    if (!confirm(`Forget all votes on ${this.names.join(" and ")}?`)) return;
    this.votes.length = 0;
    this.changed();
  }

  changed() {
    const saved = this.save();
    this.draw();
    if (!saved) this.part(".tally").append(" This browser does not keep votes: download them before you leave.");
  }

  draw() {
    const [first, second] = this.names;
    const done = new Set(this.votes.map(([item]) => item));
    const left = this.known.filter((item) => !done.has(item.dataset.item));
    this.current = first === second ? undefined : left[0];
    this.part(".stage").classList.toggle("over", !this.current);
    this.part(".ask").textContent = this.current
      ? this.current.dataset.prompt
      : first === second ? "Choose two different models." : "All pairs are judged.";
    const sides = this.root.querySelectorAll(".side");
    sides.forEach((side, i) => {
      side.replaceChildren();
      if (!this.current) return;
      const shown = this.picture(this.current, this.names[this.flip(this.current) ? 1 - i : i]).cloneNode(true);
      shown.setAttribute("aria-label", i ? "right" : "left"); // the copy must not tell its model
      delete shown.dataset.model;
      side.append(shown);
    });
    this.part(".dots").replaceChildren(...this.known.map((item) => make("li", "", done.has(item.dataset.item) ? "done" : "")));
    this.reveal();
    this.part(".tally").textContent = this.tally();
  }

  reveal() {
    const last = this.votes.at(-1);
    const item = last && this.items.find((known) => known.dataset.item === last[0]);
    this.part(".reveal").replaceChildren();
    if (!item) return;
    const [first, second] = this.names;
    const sides = this.flip(item) ? [second, first] : [first, second];
    const chosen = { first, second }[last[1]] ?? "no difference";
    this.part(".reveal").append("Last vote: ", make("strong", chosen), `. Left was ${sides[0]}, right ${sides[1]}.`);
  }

  get counts() {
    const wins = { first: 0, second: 0, tie: 0 };
    for (const [, vote] of this.votes) wins[vote] += 1;
    return wins;
  }

  tally() {
    const n = this.votes.length;
    const [first, second] = this.names;
    if (!n || first === second) return "";
    if (n < SHOWN_FROM) return `${n} of ${this.known.length} judged. The count is shown from ${SHOWN_FROM}.`;
    const { second: wins, tie } = this.counts;
    const rate = (wins + tie / 2) / n;
    const [low, high] = wilson(rate, n);
    const count = `${n} of ${this.known.length} judged: ${second} preferred in ${wins}, ${first} in ${n - wins - tie}, no difference in ${tie}.`;
    const share = `Win rate of ${second}: ${rounded(rate)}, 95 % interval ${rounded(low)} to ${rounded(high)}, ties half.`;
    const winner = low > 0.5 ? second : high < 0.5 ? first : undefined;
    const end = winner ? `Winner: ${winner}, the interval excludes one half.` : "No winner: the interval includes one half.";
    return `${count} ${share} ${end}${this.agreement()}`;
  }

  // How often a vote and the reward prefer the same picture, where both prefer one.
  agreement() {
    const [first, second] = this.names;
    let both = 0;
    let same = 0;
    for (const [name, vote] of this.votes) {
      const item = this.items.find((known) => known.dataset.item === name);
      const scores = item ? JSON.parse(item.dataset.scores) : {};
      const gain = scores[second] - scores[first];
      if (vote === "tie" || !gain || scores[first] === null || scores[second] === null) continue;
      both += 1;
      same += vote === (gain > 0 ? "second" : "first") ? 1 : 0;
    }
    return both ? ` You and ${this.root.dataset.reward} prefer the same picture in ${same} of ${both}.` : "";
  }

  download() {
    const [first, second] = this.names;
    const votes = this.votes.map(([name, vote]) => {
      const item = this.items.find((known) => known.dataset.item === name);
      return { item: name, prompt: item?.dataset.prompt, vote, preferred: { first, second }[vote] ?? null };
    });
    const record = { genrl_votes: 1, page: this.root.dataset.key, first, second, counts: this.counts, votes };
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([`${JSON.stringify(record, null, 1)}\n`], { type: "application/json" }));
    link.download = this.root.dataset.file;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000); // the browser reads it after this turn
  }
}

document.querySelectorAll(".blind").forEach((root) => new Blind(root));
