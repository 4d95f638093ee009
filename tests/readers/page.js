// Uses a page of memleak as a reader does, and writes what it sees into the page. tests/readers/page.sh puts it behind the
// page's own script, and reads the result with chromium --dump-dom.
(async () => {
  const results = [];
  const by = (id) => document.getElementById(id);
  const wait = (time) => new Promise((done) => { setTimeout(done, time); });
  const check = (what, found) => results.push(`${found ? "ok" : "FAILED"} ${what}`);
  const amounts = () => [...document.querySelectorAll("#leaks .amount")].map((cell) => cell.textContent);
  const path = () => [...document.querySelectorAll("#path button")].map((button) => button.textContent);
  const clickAt = (x, line) => {
    const box = by("canvas").getBoundingClientRect();
    const place = { clientX: box.left + x, clientY: box.top + line * 22 + 11, bubbles: true };
    by("canvas").dispatchEvent(new MouseEvent("click", place));
  };
  try {
    const data = JSON.parse(by("data").textContent);
    check("the verdict is shown", by("verdict").textContent === (data.verdict ? `gate ${data.verdict}` : ""));
    check("the command is shown", by("command").textContent === data.command);
    check("no script of a name has run", window.hostile === undefined && document.scripts.length === 3);
    check("names are text", document.querySelector("#leaks").textContent.includes("<\/script>") && !document.querySelector("#processes b"));
    check("what is lost is shown first", by("lost").getAttribute("aria-checked") === "true");
    check("call stacks are listed", amounts().length > 0 && amounts().length <= 50);
    const first = amounts().join();
    by("allocated").click();
    check("a switch changes the amounts", amounts().join() !== first);
    by("blocks").click();
    check("amounts are in blocks", amounts()[0].includes("block"));
    by("bytes").click();
    by("leaked").click();
    check("nothing is zoomed at first", path().length === 1);
    clickAt(5, 1);
    const once = path();
    check("a click zooms in", once.length === 2);
    clickAt(5, 2);
    check("a second click zooms further", path().length === 3);
    clickAt(5, 0);
    check("a click above zooms out", path().length === 1);
    clickAt(5, 1);
    document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
    check("Escape zooms out", path().length === 1);
    const listed = () => document.querySelectorAll("#leaks details").length;
    const before = data.rows.filter((row) => row.values[2] > 0).length;
    const search = by("search");
    const find = async (words) => {
      search.value = words;
      search.dispatchEvent(new Event("input", { bubbles: true }));
      await wait(400);
    };
    await find("Make_Node");
    check("a search finds functions in any case", listed() >= 1 && by("found").textContent.includes("found"));
    const withName = listed();
    await find("no such function anywhere");
    check("a search may find nothing", listed() === 0 && by("found").textContent.startsWith("0 call stacks"));
    await find("");
    check("an empty search shows all", listed() === Math.min(before, 50) && withName < before);
    const entry = document.querySelector("#leaks details");
    entry.open = true;
    await wait(100);
    check("an entry opens to its whole stack", entry.querySelectorAll(".frames li").length > 1);
    entry.querySelector("button").click();
    check("an entry leads to the picture", path().length > 2);
    check("processes are listed", document.querySelectorAll("#processes tr").length > 1);
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
