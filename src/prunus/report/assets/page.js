"use strict";

// A broken figure must say so on the page: nobody reads the console of a report.
window.addEventListener("error", (event) => {
  const line = document.createElement("p");
  line.className = "script-error";
  line.textContent = "A script of this report failed: " + event.message;
  document.querySelector("main").prepend(line);
});

const dark = window.matchMedia("(prefers-color-scheme: dark)");

// Colors of a figure, read from the style sheet so that both follow the same scheme.
function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim();
  const changes = {
    "font.color": color("--text"),
    "hoverlabel.bgcolor": color("--panel"),
    "hoverlabel.bordercolor": color("--line"),
    "hoverlabel.font.color": color("--text"),
    "legend.bgcolor": "rgba(0,0,0,0)",
    "modebar.color": color("--muted"),
    "modebar.activecolor": color("--accent"),
    "modebar.bgcolor": "rgba(0,0,0,0)",
  };
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    changes[name + ".gridcolor"] = color("--line");
    changes[name + ".linecolor"] = color("--muted");
    changes[name + ".tickcolor"] = color("--muted");
  }
  (layout.updatemenus || []).forEach((_, i) => {
    changes[`updatemenus[${i}].bgcolor`] = color("--panel");
    changes[`updatemenus[${i}].bordercolor`] = color("--line");
    changes[`updatemenus[${i}].font.color`] = color("--text");
  });
  return changes;
}

// On a narrow page the legend goes below the figure, where it takes no width, but height of its own.
function placed(element, figure) {
  const entries = figure.data.filter((trace) => trace.name && trace.showlegend !== false).length;
  const below = figure.layout.showlegend || entries > 1 ? 22 * Math.min(entries, 16) : 0;
  const height = figure.layout.height;
  return element.clientWidth < 760
    ? { "legend.orientation": "h", "legend.yref": "container", "legend.y": 0, "legend.yanchor": "bottom", height: height + below }
    : { "legend.orientation": "v", "legend.yref": "paper", "legend.y": 1, "legend.yanchor": "top", height };
}

const figures = JSON.parse(document.getElementById("figure-data").textContent);
const drawn = Object.entries(figures).map(([name, figure]) => {
  const element = document.getElementById("plot-" + name);
  // A report is private: no button that sends its data anywhere.
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  Plotly.newPlot(element, figure.data, structuredClone(figure.layout), config);
  Plotly.relayout(element, { ...themed(figure.layout), ...placed(element, figure) });
  return [element, figure];
});

function repaint() {
  drawn.forEach(([element, figure]) =>
    Plotly.relayout(element, { ...themed(element.layout), ...placed(element, figure) }));
}
dark.addEventListener("change", repaint);
window.addEventListener("resize", () => {
  clearTimeout(window.repaintTimer);
  window.repaintTimer = setTimeout(repaint, 150);
});

// Click a head to sort by its column; again to turn the order. Dense rows stay on top, in a table
// body of their own, and cells without a number go last in either order.
function sortBy(head) {
  const table = head.closest("table");
  const body = table.tBodies[table.tBodies.length - 1];
  const descending = head.getAttribute("aria-sort") === "ascending";
  const value = (row) => row.cells[head.cellIndex].dataset.sort;
  const numeric = head.classList.contains("number");
  const rows = [...body.rows].sort((left, right) => {
    const [a, b] = [value(left), value(right)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en");
    return descending ? -order : order;
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...rows);
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortBy(head));
  head.append(button);
}
