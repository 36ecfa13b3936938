// The model finder: hides the rows of the table that the form leaves out. What is chosen stands in the address behind #,
// so that it can be linked: finder.html#pillar=cross-modal&most=300
(function () {
  const form = document.getElementById("finder")
  const found = document.getElementById("found")
  const rows = [...document.querySelectorAll("#models tbody tr")]
  if (!form) return
  const million = 1e6

  function fits(row, wanted) {
    const data = row.dataset
    const size = Number(data.parameters)
    return (!wanted.name || data.name.includes(wanted.name.trim().toLowerCase()))
      && ["pillar", "streams", "proof"].every(key => !wanted[key] || data[key] === wanted[key])
      && ["language", "licence", "task"].every(key => !wanted[key] || data[key].split("|").includes(wanted[key]))
      && (!wanted.least || size >= Number(wanted.least) * million)
      && (!wanted.most || size <= Number(wanted.most) * million)
  }

  function show() {
    const wanted = Object.fromEntries(new FormData(form))
    let count = 0
    for (const row of rows) {
      row.hidden = !fits(row, wanted)
      count += !row.hidden
    }
    found.textContent = count === 1 ? "1 model" : `${count} models`
    return wanted
  }

  function changed() {
    const given = Object.entries(show()).filter(([, value]) => value)
    history.replaceState(null, "", "#" + new URLSearchParams(given))
  }

  function fromAddress() {
    form.reset()
    for (const [key, value] of new URLSearchParams(location.hash.slice(1)))
      if (form.elements[key]) form.elements[key].value = value
    show()
  }

  form.hidden = false
  form.addEventListener("input", changed)
  form.addEventListener("reset", () => setTimeout(changed))
  form.addEventListener("submit", event => event.preventDefault())
  window.addEventListener("hashchange", fromAddress)
  fromAddress()
})()
