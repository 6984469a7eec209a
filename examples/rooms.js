// What a page does with the channels of `rooms.py`. The origin of the page is the server's, or one it allows.

// region: listen
import { connect } from "http://127.0.0.1:8000/hub.js";

const hub = connect();
const room = hub.subscribe("room.lobby", { history: 20, name: "Ada" });

room.on("event", ({ data }) => {
  const said = JSON.parse(data);
  console.log(`${said.name}: ${said.text}`);
});
room.on("gap", () => console.log("Some messages are gone."));
// endregion

// region: presence
const { members, event: last } = await hub.members("room.lobby");
console.log(`here: ${members.map((member) => member.name).join(", ")}`);

hub
  .subscribe("$presence.room.lobby", { from: last })
  .on("event", ({ event, data }) => console.log(`${JSON.parse(data).name} ${event === "join" ? "came" : "left"}`));
// endregion

// region: post
const post = (name, text) => hub.publish("room.lobby", { name, text });
// endregion

post("Ada", "Good morning");
