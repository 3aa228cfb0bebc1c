// Search runs in a web worker, and browsers give none to a page that was opened from a folder. There it runs in a hidden frame, with
// which messages are exchanged as with a worker. The theme would fetch such a script from elsewhere if none were named like this one.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.worker = this
      document.body.append(this.frame)
      const inner = this.frame.contentDocument
      inner.open()
      this.ready = new Promise(loaded => { this.frame.onload = loaded })
      inner.write(`<body><script>
        postMessage = data => frameElement.worker.dispatchEvent(new MessageEvent("message", { data }))
        importScripts = async (...urls) => {
          for (const url of urls)
            await new Promise(loaded => {
              const script = Object.assign(document.createElement("script"), { src: url, onload: loaded })
              document.body.append(script)
            })
        }
      <\/script><script src="${url}"><\/script></body>`)
      inner.close()
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
