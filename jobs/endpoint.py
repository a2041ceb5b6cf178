"""Where other local tools find the lanes: the chat host's OpenAI-compatible address, key and names.

Only a command of this user shows the key; no page does.
"""

import json

from jobs import chat_client
from studio.home import Home

EXAMPLE = """\
from openai import OpenAI

client = OpenAI(base_url="{url}", api_key="{key}")
answer = client.chat.completions.create(
    model="{model}", messages=[{{"role": "user", "content": "Hello"}}]
)
print(answer.choices[0].message.content)"""


def endpoint(home: Home, *, hours: float, as_json: bool) -> int:
    """Start the chat host where none lives, and print how to reach it.

    Args:
        home: Whose bases and adapters are served.
        hours: How long a host that is started now stays when nobody asks.
        as_json: Print one JSON document.
    """
    from jobs.chat_openai import model_names

    reached = chat_client.ensure_host(home, idle_seconds=hours * 3600)
    url, names = f"{reached.url}/v1", model_names(home)
    if as_json:
        values = {"base_url": url, "api_key": reached.token, "models": names}
        print(json.dumps(values, ensure_ascii=False))
        return 0
    print(f"Address  {url}\nKey      {reached.token}\nModels   {', '.join(names)}")
    print("A model is BASE, ADAPTER, or BASE+ADAPTER:WEIGHT+…, weights 1 when absent.\n")
    print(EXAMPLE.format(url=url, key=reached.token, model=names[-1]))
    return 0
