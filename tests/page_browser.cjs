// Drives the page in headless Chromium: node page_browser.cjs ADDRESS SCREENSHOTS PROFILE, with playwright-core in
// NODE_PATH. Prints one JSON object of what was seen; the tests in test_page_browser.py say what that should be.
const fs = require("fs");
const { chromium } = require("playwright-core");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const [address, shots, profile] = process.argv.slice(2);
const seen = { errors: [], outside: [], opened: [] };

const wide = (page) => page.setViewportSize({ width: 1280, height: 900 });
const narrow = (page) => page.setViewportSize({ width: 360, height: 740 });
const button = (page, name) => page.getByRole("button", { name, exact: true });
const overflow = (page) => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
const shot = (page, name) => page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
const pixels = (page) => page.locator("img.pixels").evaluateAll((all) => all.map((image) => image.naturalWidth));

async function open(browser) {
  const page = await browser.newPage();
  await page.bringToFront(); // what lies behind is not animated
  page.setDefaultTimeout(30000);
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("request", (request) => {
    if (!request.url().startsWith(address) && !/^(data|blob):/.test(request.url())) seen.outside.push(request.url());
  });
  const began = Date.now();
  await page.goto(address);
  await page.locator("img.pixels").waitFor();
  seen.opened.push(Date.now() - began); // ms until a result is there
  await button(page, "Sample").waitFor();
  return page;
}

async function mouse(page) {
  await wide(page);
  seen.kept = await page.locator("img.pixels").first().getAttribute("alt");
  await page.getByLabel("Beside it").click();
  await page.getByRole("option", { name: "ddim", exact: true }).click();
  const eta = page.getByLabel("ddim: eta");
  await eta.waitFor(); // a field of that solver's
  await eta.fill("0.5");
  await button(page, "Sample").click();
  await page.locator("img.pixels").nth(1).waitFor();
  seen.first = await page.locator("img.pixels").first().getAttribute("alt");
  await page.getByText("Done.").waitFor();
  await page.locator("img.pixels").nth(2).waitFor();
  await page.locator("pre[role=region]").nth(1).waitFor();
  seen.pictures = await pixels(page);
  seen.difference = await page.locator("img.pixels").nth(2).getAttribute("alt");
  seen.python = await page.locator("pre.wrap").first().textContent();
  seen.other = await page.locator("pre.wrap").nth(1).textContent();
  for (const name of ["samples.npz", "run.json"]) {
    const link = await page.getByRole("link", { name }).first().evaluate((found) => found.href);
    fs.writeFileSync(`${shots}/${name}`, await (await page.request.get(link)).body());
  }
  await shot(page, "samples");
  await narrow(page);
  seen.overflow = [await overflow(page)];
  await shot(page, "samples-360");
  await eta.fill("much");
  await button(page, "Sample").click();
  seen.alert = await page.getByRole("alert").textContent();
  await page.locator(".wrong").getByText("got eta='much'").waitFor(); // at the field
  seen.refused = await page.locator(".wrong").first().innerText();
  seen.stale = (await pixels(page)).length + await page.locator("img.plot:visible, pre.fs:visible").count();
  seen.overflow.push(await overflow(page));
  await shot(page, "refused-360");
  await eta.fill("");
  await page.getByLabel("number input for Network calls").first().fill("100");
  await button(page, "Sample").click();
  await page.locator('img[alt*=" of 100"]').first().waitFor();
  await page.getByText(/Sampling, (about \d+ s|a moment) left/).waitFor();
  await button(page, "Stop").click();
  await page.getByText("Stopped.").waitFor();
  seen.stopped = await page.locator("img.pixels").first().getAttribute("alt");
}

async function keyboard(page) {
  await narrow(page);
  const focused = () => page.evaluate(() => {
    const element = document.activeElement;
    return element.ariaLabel || element.labels?.[0]?.innerText || element.innerText.slice(0, 40);
  });
  const tab = async (until) => {
    for (let k = 0; k < 60; k++) {
      await page.keyboard.press("Tab");
      seen.order.push(await focused());
      if (seen.order.at(-1) === until) return;
    }
    throw new Error(`no ${until} among ${seen.order.join(", ")}`);
  };
  seen.order = [];
  await tab("Solver");
  await page.keyboard.type("dpmpp-2m");
  await page.locator('li.active[aria-label="dpmpp-2m"]').waitFor(); // the list has been narrowed down
  await page.waitForTimeout(300); // gradio loses a choice that is quicker, and nobody is
  await page.keyboard.press("Enter");
  await page.waitForTimeout(300);
  await tab("Sample");
  await page.keyboard.press("Enter");
  await page.locator('img.pixels[alt^="dpmpp-2m: 10 network calls"]').waitFor(); // "Done." is what it opens with
  seen.typed = await page.locator("img.pixels").first().getAttribute("alt");
  await tab("Playground");
  await page.keyboard.press("Enter");
  await page.getByText("exact paths (root").waitFor();
  await tab("Draw");
  await page.keyboard.press("Space");
  await page.getByText("Working").waitFor();
  await page.getByText("exact paths (root").waitFor();
  await page.locator("img.plot:visible").nth(1).waitFor();
  seen.overflow.push(await overflow(page));
  seen.lists = await page.locator("[role=listbox]:visible").count();
  await shot(page, "playground-360");
  await wide(page);
  await shot(page, "playground");
}

async function nameless(page) {
  return page.locator("input, button, textarea, select, a[href], [tabindex]").evaluateAll((all) => all
    .filter((element) => element.offsetParent && !(element.ariaLabel || element.labels?.[0]?.innerText.trim() ||
      element.innerText.trim())).map((element) => element.outerHTML.slice(0, 200)));
}

(async () => {
  const browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium", headless: true, args: FLAGS,
  });
  let page = await open(browser);
  await mouse(page);
  seen.nameless = await nameless(page);
  await page.close();
  page = await open(browser);
  await keyboard(page);
  seen.nameless.push(...await nameless(page));
  await browser.close();
})().catch((error) => { seen.failed = error.message; }).finally(() => {
  console.log(JSON.stringify(seen));
  process.exit(seen.failed ? 1 : 0);
});
