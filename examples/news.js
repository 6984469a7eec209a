const { connect } = await import("http://127.0.0.1:8000/hub.js");
const hub = connect();

hub.subscribe("news").on("event", ({ data }) => console.log(JSON.parse(data).text));
hub.subscribe("orders.created").on("event", ({ data, event }) => console.log(`${event}: ${JSON.parse(data).isbn}`));
hub.on("gap", () => location.reload());
