// Sort a table by the column whose heading is pressed; missing values stay last.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("number");
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const order = heading.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
      });
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", order);
      table.tBodies[0].append(...rows);
    });
  });
}

// A chosen measure is the one that its table shows.
for (const choice of document.querySelectorAll(".measures input")) {
  const table = choice.closest("fieldset").nextElementSibling.querySelector("table");
  const show = () => { if (choice.checked) table.dataset.shown = choice.value; };
  choice.addEventListener("change", show);
  show();  // a browser that comes back remembers what was chosen
}

// A link to a run opens it.
const open = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", open);
open();

// A picture that is pressed fills the window until it is pressed again.
const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.picture")) {
  button.addEventListener("click", () => {
    dialog.replaceChildren(button.firstElementChild.cloneNode());
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
