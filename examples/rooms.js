// What a page does with the channels of `rooms.py`. The origin of the page is the server's, or one it allows.

// region: listen
const stream = new EventSource("http://127.0.0.1:8000/events?channel=room.lobby&history=20&client_id=ada&name=Ada");

stream.onmessage = (event) => {
  const said = JSON.parse(event.data);
  console.log(`${said.name}: ${said.text}`);
};
stream.addEventListener("gap", () => console.log("Some messages are gone."));
// endregion

// region: presence
const doors = new EventSource("http://127.0.0.1:8000/events?channel=$presence.room.lobby&members=1");

doors.addEventListener("members", (event) => {
  const { members } = JSON.parse(event.data);
  console.log(`here: ${members.map((member) => member.name).join(", ")}`);
});
doors.addEventListener("join", (event) => console.log(`${JSON.parse(event.data).name} came`));
doors.addEventListener("leave", (event) => console.log(`${JSON.parse(event.data).name} left`));
// endregion

// region: post
const post = (name, text) =>
  fetch("http://127.0.0.1:8000/publish", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ channel: "room.lobby", data: { name, text } }),
  });
// endregion

post("Ada", "Good morning");
