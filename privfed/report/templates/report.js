for (const pair of document.querySelectorAll(".ladder-pair")) {
  const after = pair.querySelector("img:not(.under)");
  if (!pair.querySelector(".under")) {
    const before = document.createElement("img");
    before.className = "under";
    before.alt = "";
    before.src = pair.closest("tr").querySelector("th img").src;
    pair.prepend(before);
  }
  const range = document.createElement("input");
  range.type = "range";
  range.min = 0;
  range.max = 100;
  range.value = 0;
  range.setAttribute("aria-label", "Left of the handle the original, right of it: " + after.alt);
  const show = () => { after.style.clipPath = `inset(0 0 0 ${range.value}%)`; };
  range.addEventListener("input", show);
  pair.classList.add("sliding");
  pair.append(range);
  show();
}
for (const button of document.querySelectorAll("button.expand")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    const closed = [...document.querySelectorAll("details")].some((part) => !part.open);
    for (const part of document.querySelectorAll("details")) part.open = closed;
    button.textContent = closed ? "Close all details" : "Open all details";
  });
}
