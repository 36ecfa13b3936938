// A click on an equation, or Enter on one, copies its LaTeX.
document.addEventListener("click", copy)
document.addEventListener("keydown", event => event.key === "Enter" && copy(event))

function copy(event) {
  const equation = event.target.closest?.(".equation")
  if (!equation || String(getSelection())) return  // who marks a part wants that part
  const latex = equation.querySelector("annotation").textContent
  const written = navigator.clipboard?.writeText(latex) ?? Promise.reject()
  written.catch(() => selected(latex)).then(() => {
    equation.classList.add("copied")
    setTimeout(() => equation.classList.remove("copied"), 1500)
  })
}

// The old way, where the clipboard is not to be written to: a text that is selected and copied.
function selected(text) {
  const area = document.createElement("textarea")
  area.value = text
  document.body.append(area)
  area.select()
  const done = document.execCommand("copy")
  area.remove()
  if (!done) throw new Error("the browser does not let a page copy")
}
