"""A tool that needs a service on the internet. ``millstream dev weather.py``."""

# region: server
import json
from urllib.request import urlopen

from millstream import Depends, Server, ToolError

mcp = Server("weather")


class Forecasts:
    """The weather service."""

    def temperature(self, city: str) -> float:
        """Return tomorrow's temperature."""
        with urlopen(f"https://weather.example.com/{city}", timeout=5) as response:
            return float(json.load(response)["temperature"])


@mcp.tool
def what_to_wear(city: str, forecasts: Forecasts = Depends(Forecasts)) -> str:
    """Say what to wear tomorrow."""
    try:
        temperature = forecasts.temperature(city)
    except OSError as error:
        raise ToolError("The forecast isn't available. Try again in a minute.") from error
    return "a coat" if temperature < 10 else "a shirt"


# endregion

if __name__ == "__main__":
    mcp.run()
