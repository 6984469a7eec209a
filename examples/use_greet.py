"""The smallest client: ``python use_greet.py``, beside `greet.py`."""

# region: client
from millstream.client import BlockingClient

with BlockingClient("greet.py") as client:
    print(client.call("greet", name="Ada").text)
# endregion
