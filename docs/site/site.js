// A click on an equation, or Enter on one, copies its LaTeX.
document.addEventListener("click", copy)
document.addEventListener("keydown", event => event.key === "Enter" && copy(event))

function copy(event) {
  const equation = event.target.closest?.(".equation")
  if (!equation || String(getSelection())) return  // who marks a part wants that part
  navigator.clipboard?.writeText(equation.querySelector("annotation").textContent).then(() => {
    equation.classList.add("copied")
    setTimeout(() => equation.classList.remove("copied"), 1500)
  })
}
