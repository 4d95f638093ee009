// Uses a page with very many call stacks.
useAsReader(async ({ data, by, check, path, clickAt, search }) => {
  const stacks = data.rows.filter((row) => row.frames);
  check(`${stacks.length} call stacks have room`, stacks.length >= 50000);
  check("what was left out is said", !by("left-out-stacks").hidden && by("left-out-stacks").textContent.includes("no room"));
  check("and counts", data.rows.some((row) => !row.frames && row.values[2] > 0));
  by("allocated").click();
  check("a switch changes what is shown", by("allocated").getAttribute("aria-checked") === "true");
  clickAt(5, 3);
  check("a click zooms in", path().length > 1);
  await search("fill_77", 2000);
  check("a search finds call stacks", /[1-9][0-9,]* call stacks? found/.test(by("found").textContent));
});
