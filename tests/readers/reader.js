// What the scripts of readers share. scripts/test-readers.sh puts it before each of them, behind the page's own script.

// Uses the page, and writes what was seen into it.
const useAsReader = async (steps) => {
  const results = [];
  const by = (id) => document.getElementById(id);
  const wait = (time) => new Promise((done) => { setTimeout(done, time); });
  const check = (what, found) => results.push(`${found ? "ok" : "FAILED"} ${what}`);
  const path = () => document.querySelectorAll("#path button");
  const clickAt = (x, line) => {
    const box = by("canvas").getBoundingClientRect();
    const place = { clientX: box.left + x, clientY: box.top + line * 22 + 11, bubbles: true };
    by("canvas").dispatchEvent(new MouseEvent("click", place));
  };
  const search = async (words, time) => {
    by("search").value = words;
    by("search").dispatchEvent(new Event("input", { bubbles: true }));
    await wait(time);
  };
  try {
    await steps({ data: JSON.parse(by("data").textContent), by, wait, check, path, clickAt, search });
    const room = document.documentElement;
    check("the page is as wide as its window", room.scrollWidth <= room.clientWidth);
  } catch (error) {
    results.push(`FAILED ${error.stack}`);
  }
  const out = document.createElement("pre");
  out.id = "results";
  out.textContent = `\n${results.join("\n")}\n`;
  document.body.append(out);
};
