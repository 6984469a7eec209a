const stream = new EventSource("http://127.0.0.1:8000/events?channel=news,orders.created");

stream.onmessage = (event) => console.log(JSON.parse(event.data).text);
stream.addEventListener("order", (event) => console.log(`ordered: ${JSON.parse(event.data).isbn}`));
stream.addEventListener("gap", () => location.reload());
