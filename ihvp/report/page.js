"use strict";
{
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const element = (id) => document.getElementById(id);
  const compare = new Intl.Collator(undefined, { numeric: true }).compare;
  const examples = all("tbody");
  const texts = new Map();

  function words(example) {
    if (!texts.has(example)) {
      const copy = example.cloneNode(true);
      for (const number of all(".number", copy)) number.remove();
      texts.set(example, copy.textContent.replace(/\s+/g, " ").toLowerCase());
    }
    return texts.get(example);
  }

  function offer(id, selector) {
    const labels = new Set(all(selector).map((each) => each.dataset.label));
    for (const label of [...labels].sort(compare)) element(id).append(new Option(label, `=${label}`));
    element(id).parentElement.hidden = labels.size < 2;
  }

  function fits(each, id) {
    return element(id).value === "" || element(id).value === `=${each.dataset.label}`;
  }

  function filter() {
    const wanted = element("find").value.trim().replace(/\s+/g, " ").toLowerCase();
    for (const query of all("section, nav li")) query.hidden = !fits(query, "query-label");
    for (const each of examples) each.hidden = !(fits(each, "label") && words(each).includes(wanted));
    for (const list of all(".list")) all(".none", list)[0].hidden = all("tbody:not([hidden])", list).length > 0;
    const seen = all("section:not([hidden]) tbody:not([hidden])").length;
    element("count").textContent = `${seen} of ${examples.length} shown`;
  }

  function sort(header) {
    const table = header.closest("table");
    const key = header.dataset.key;
    const order = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (each) => (key === "label" ? each.dataset.label : Number(each.dataset[key]));
    const difference = key === "label" ? compare : (a, b) => a - b;
    table.append(...all("tbody", table).sort((a, b) => sign * difference(value(a), value(b))));
  }

  for (const header of all("th[data-key]")) header.firstChild.addEventListener("click", () => sort(header));
  for (const id of ["label", "query-label", "find"]) element(id).addEventListener("input", filter);

  document.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const text = event.target.closest?.(".tokens");
    if (!step || !text || event.ctrlKey || event.altKey || event.metaKey) return;
    const tokens = all("[tabindex]", text);
    const next = tokens[tokens.indexOf(event.target) + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });

  offer("label", "tbody[data-label]");
  offer("query-label", "section[data-label]");
  filter();
  element("tools").hidden = false;
}
