"use strict";
// A heading sorts its table: numbers from the greatest, words from A, again the other way; what is missing stays last.
const words = new Intl.Collator("en", { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const isNumber = head.dataset.kind !== "text";
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const descends = before === null ? isNumber : before === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", descends ? "descending" : "ascending");
      const sign = descends ? -1 : 1;
      const compare = (one, other) => {
        const a = one.cells[column], b = other.cells[column];
        if (!isNumber) return sign * words.compare(a.textContent, b.textContent);
        const gaps = ("sort" in b.dataset) - ("sort" in a.dataset);
        return gaps || sign * (a.dataset.sort - b.dataset.sort) || 0;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}
// Frames lie below one another in one picture; a slider moves it behind a window of one frame's height.
for (const slider of document.querySelectorAll("input[data-frames]")) {
  const labels = slider.dataset.frames.split("|"), card = slider.closest("figure");
  const image = card.querySelector("img"), output = card.querySelector("output");
  const move = () => {
    image.style.transform = `translateY(${-100 * slider.value / labels.length}%)`;
    output.value = labels[slider.value];
    slider.setAttribute("aria-valuetext", labels[slider.value]);
  };
  const size = () => { image.parentElement.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight / labels.length}`; };
  slider.addEventListener("input", move);
  if (image.complete) size(); else image.addEventListener("load", size);
  move();
}
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});

// What is chosen stands in the address, #place?measure=knn&rows=hog, so that a view can be sent to somebody.
const read = () => {
  const [place, query] = location.hash.slice(1).split("?");
  return { place: decodeURIComponent(place), chosen: new URLSearchParams(query) };
};
const address = (place, chosen) => `#${place}${chosen.size ? "?" + chosen : ""}`;
const write = (name, value) => {
  const { place, chosen } = read();
  if (value) chosen.set(name, value); else chosen.delete(name);
  history.replaceState(null, "", address(place, chosen));
  show();
};
const switches = [...document.querySelectorAll("select[data-switch]")];
const filter = document.querySelector("input[data-filter]");
function show() {
  const { place, chosen } = read();
  for (const one of switches) {
    const wanted = chosen.get("measure"), has = [...one.options].some(option => option.value === wanted);
    one.value = has ? wanted : one.options[0].value;
    for (const measure of one.closest(".compare").querySelectorAll(".measure")) {
      measure.hidden = measure.dataset.measure !== one.value;
    }
  }
  const rows = (chosen.get("rows") ?? "").toLowerCase();
  if (filter.value.toLowerCase() !== rows) filter.value = rows;
  for (const row of document.querySelectorAll("table.sortable tbody tr")) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(rows);
  }
  // a table without a row that is left says nothing
  for (const table of document.querySelectorAll("table.sortable")) {
    table.closest(".scroll").hidden = !table.querySelector("tbody tr:not([hidden])");
  }
  document.querySelector("[data-no-row]").hidden = document.querySelector("table.sortable tbody tr:not([hidden])");
  return document.getElementById(place);
}
function go() {
  const found = show();
  for (let one = found; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  if (found) found.scrollIntoView();
}
for (const one of switches) one.addEventListener("change", () => write("measure", one.value));
filter.addEventListener("input", () => write("rows", filter.value));
// a link on the page changes the place alone, what is chosen stays
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    history.pushState(null, "", address(link.hash.slice(1), read().chosen));
    go();
    const found = document.getElementById(read().place);
    found.tabIndex = -1;
    found.focus({ preventScroll: true });
  });
}
addEventListener("hashchange", go);
go();
