let last = "";

function listen() {
  const stream = new EventSource(`/events?channel=news&history=20&last_event_id=${encodeURIComponent(last)}`);
  stream.onmessage = ({ data, lastEventId }) => {
    last = lastEventId;
    console.log(JSON.parse(data).text);
  };
  stream.addEventListener("gap", () => location.reload());
  stream.onerror = () => {
    if (stream.readyState === EventSource.CLOSED) setTimeout(listen, 1_000 + 4_000 * Math.random());
  };
}
listen();
