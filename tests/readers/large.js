// Uses a page with very many call stacks, and writes what it sees into the page. scripts/test-readers.sh puts it behind the
// page's own script.
(async () => {
  const results = [];
  const by = (id) => document.getElementById(id);
  const check = (what, found) => results.push(`${found ? "ok" : "FAILED"} ${what}`);
  const clickAt = (x, line) => {
    const box = by("canvas").getBoundingClientRect();
    by("canvas").dispatchEvent(new MouseEvent("click", { clientX: box.left + x, clientY: box.top + line * 22 + 11, bubbles: true }));
  };
  const path = () => document.querySelectorAll("#path button").length;
  try {
    const data = JSON.parse(by("data").textContent);
    const stacks = data.rows.filter((row) => row.frames);
    check(`${stacks.length} call stacks have room`, stacks.length >= 50000);
    check("what was left out is said", !by("left-out-stacks").hidden && by("left-out-stacks").textContent.includes("no room"));
    check("and counts", data.rows.some((row) => !row.frames && row.values[2] > 0));
    by("allocated").click();
    check("a switch changes what is shown", by("allocated").getAttribute("aria-checked") === "true");
    clickAt(5, 3);
    check("a click zooms in", path() > 1);
    const search = by("search");
    search.value = "fill_77";
    search.dispatchEvent(new Event("input", { bubbles: true }));
    await new Promise((done) => { setTimeout(done, 2000); });
    check("a search finds call stacks", /[1-9][0-9,]* call stacks? found/.test(by("found").textContent));
    const room = document.documentElement;
    check("the page is as wide as its window", room.scrollWidth <= room.clientWidth);
  } catch (error) {
    results.push(`FAILED ${error.stack}`);
  }
  const out = document.createElement("pre");
  out.id = "results";
  out.textContent = `\n${results.join("\n")}\n`;
  document.body.append(out);
})();
