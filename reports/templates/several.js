// Sorting and filtering of the table of cases, with the state in the URL; light and dark.
(() => {
  "use strict";
  const get = id => document.getElementById(id);
  const theme = get("theme"), root = document.documentElement;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", "Switch to " + (dark() ? "light" : "dark") + " colours"); };
  theme.hidden = false;
  nameTheme();
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); });

  const table = get("table"), form = get("filters");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const words = rows.map(r => r.textContent.toLowerCase());
  const verdicts = rows.map(r => [...r.querySelectorAll(".verdict")].map(c => c.textContent));
  const place = new Map(rows.map((r, i) => [r, i]));
  let sorted = { column: -1, down: false };
  form.hidden = false;

  const state = () => {
    const found = {};
    for (const name of ["q", "verdict", "op", "format"]) if (form.elements[name].value) found[name] = form.elements[name].value;
    if (sorted.column >= 0) found.sort = (sorted.down ? "-" : "") + sorted.column;
    return found;
  };
  const remember = () => {
    const text = new URLSearchParams(state()).toString();
    history.replaceState(null, "", text ? "#cases?" + text : "#cases");
  };
  const show = () => {
    const want = state(), q = (want.q || "").toLowerCase();
    let count = 0;
    rows.forEach((row, i) => {
      const fits = (!q || words[i].includes(q)) && (!want.op || row.dataset.op === want.op)
        && (!want.format || row.dataset.format === want.format) && (!want.verdict || verdicts[i].includes(want.verdict));
      row.hidden = !fits;
      count += fits;
    });
    get("shown").textContent = count + " of " + rows.length + " cases";
  };
  const key = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.s === undefined) return cell.textContent;
    return cell.dataset.s === "" ? null : Number(cell.dataset.s);
  };
  const sort = () => {
    const { column, down } = sorted;
    heads.forEach((h, i) => i === column ? h.setAttribute("aria-sort", down ? "descending" : "ascending") : h.removeAttribute("aria-sort"));
    const order = [...rows];
    if (column >= 0) {
      const keys = new Map(rows.map(r => [r, key(r, column)]));
      order.sort((a, b) => {
        const x = keys.get(a), y = keys.get(b);
        // What has no figure stands last, whichever way it is sorted.
        if (x === null || y === null) return (x === null) - (y === null) || place.get(a) - place.get(b);
        const by = typeof x === "number" ? x - y : x.localeCompare(y);
        return (down ? -by : by) || place.get(a) - place.get(b);
      });
    }
    body.append(...order);
  };
  heads.forEach((head, i) => head.querySelector("button").addEventListener("click", () => {
    const again = sorted.column === i;
    sorted = again && sorted.down ? { column: -1, down: false } : { column: i, down: again };
    sort();
    remember();
  }));
  const apply = () => { show(); remember(); };
  for (const kind of ["input", "change"]) form.addEventListener(kind, apply);
  form.addEventListener("reset", () => setTimeout(apply));
  form.addEventListener("submit", e => e.preventDefault());

  const restore = () => {
    const [where, query] = location.hash.slice(1).split("?");
    if (where === "cases") {
      const given = new URLSearchParams(query || "");
      for (const name of ["q", "verdict", "op", "format"]) form.elements[name].value = given.get(name) || "";
      const by = given.get("sort") || "", column = parseInt(by.replace("-", ""), 10);
      sorted = column >= 0 && column < heads.length ? { column, down: by[0] === "-" } : { column: -1, down: false };
      sort();
      if (query !== undefined) get("cases").scrollIntoView();
    } else {
      const row = where && document.getElementById(where);
      if (row && row.hidden) form.reset();
    }
    show();
  };
  addEventListener("hashchange", restore);
  restore();
})();
