"use strict";
// Filter, sorting, and folds that open for what they hold. Without this script the page is complete, only longer.
document.documentElement.classList.add("script");
const form = document.getElementById("filter");
const cells = [...document.querySelectorAll("tbody.cell")];
const words = new Map(cells.map((cell) => [cell, `${cell.rows[0].textContent} ${cell.dataset.name}`.toLowerCase()]));

function filter() {
  const { paper, status, text } = Object.fromEntries(new FormData(form));
  const wanted = text.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const cell of cells) {
    const fits = (!paper || cell.dataset.paper === paper) && (!status || cell.dataset.status === status) &&
      wanted.every((word) => words.get(cell).includes(word));
    cell.hidden = !fits;
    shown += fits;
  }
  hideEmpty(Boolean(paper || status || text.trim()), Boolean(status || text.trim()));
  document.getElementById("shown").textContent = `${shown} of ${cells.length} rows`;
  document.getElementById("none").hidden = shown > 0;
}

function hideEmpty(filtered, narrowed) {
  for (const group of document.querySelectorAll(".group")) {
    const some = group.querySelector("tbody.cell:not([hidden])") !== null;
    group.hidden = filtered && !some;
    if (group.matches("details")) group.open = narrowed && some;
  }
  for (const extra of document.querySelectorAll(".extra")) extra.hidden = narrowed;
}

function sortBy(button) {
  const head = button.closest("th"), table = button.closest("table"), column = head.cellIndex;
  const next = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort") ?? "none"];
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", next);
  const sign = next === "descending" ? -1 : 1;
  const key = (cell) => next === "none" ? cell.dataset.order : cell.rows[0].cells[column].dataset.key ??
    cell.rows[0].cells[column].textContent;
  table.append(...[...table.tBodies].sort((a, b) => sign * compare(key(a), key(b), sign)));
}

function compare(a, b, sign) {
  if (a === "" || b === "") return sign * ((a === "") - (b === "")); // rows without a number come last either way
  return Number.isNaN(Number(a) + Number(b)) ? a.localeCompare(b, "en", { numeric: true }) : Number(a) - Number(b);
}

function choose(status, paper) {
  form.elements.text.value = "";
  form.elements.status.value = status;
  form.elements.paper.value = paper ?? "";
  filter();
  document.querySelector(".group:not([hidden])")?.scrollIntoView();
}

function reveal() {
  const found = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (found?.closest("[hidden]")) {
    form.reset();
    filter();
  }
  for (let fold = found?.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  found?.scrollIntoView({ block: "nearest" });
}

form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.matches("th button")) sortBy(button);
  if (button?.matches(".chip")) choose(button.dataset.status, button.dataset.paper);
});
addEventListener("hashchange", reveal);
filter();
reveal();
