// The search runs in a worker, which browsers refuse to start from a file: address. There it runs in a hidden frame, so
// that the site can be searched from a folder too.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      this.waiting = []
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.title = "search"
      this.frame.addEventListener("load", () => this.start(address), { once: true })
      document.body.append(this.frame)
    }

    start(address) {
      const inside = this.frame.contentWindow
      inside.postMessage = data => {  // later, as a worker answers
        const event = new MessageEvent("message", { data: structuredClone(data) })
        setTimeout(() => this.answer(event))
      }
      const script = inside.document.createElement("script")
      script.src = address
      script.addEventListener("load", () => {
        this.waiting.forEach(data => this.hand(data))
        this.waiting = null
      })
      script.addEventListener("error", event => this.onerror?.(event))
      inside.document.body.append(script)
    }

    answer(event) {
      this.onmessage?.(event)
      this.dispatchEvent(event)
    }

    hand(data) {
      const inside = this.frame.contentWindow
      const event = new inside.MessageEvent("message", { data: inside.structuredClone(data) })
      setTimeout(() => inside.dispatchEvent(event))
    }

    postMessage(data) {
      this.waiting ? this.waiting.push(data) : this.hand(data)
    }

    terminate() {
      this.frame.remove()
    }
  }
}
