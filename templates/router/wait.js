// Goes on by itself: asks the router whether the workspace is there, and loads the page again when anything has changed.
(() => {
  let delay = 1000;
  const ask = async () => {
    try {
      const answer = await fetch("/.well-known/beaver/ready", { cache: "no-store" });
      if (answer.ok && (await answer.json()).waiting) {
        delay = Math.min(delay * 1.2, 5000);
      } else if (answer.ok || answer.status === 404) {
        location.reload();
        return;
      }
    } catch {
      delay = Math.min(delay * 2, 15000);
    }
    setTimeout(ask, delay);
  };
  setTimeout(ask, delay);
})();
